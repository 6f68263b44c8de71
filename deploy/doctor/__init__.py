"""``breakwater doctor``: checks what a run needs of this machine and suggests fixes.

``findings`` is the form of a result; ``machine`` checks Python, packages and resources, ``party`` a folder of
certificates, ``network`` ports and a server, ``data`` data files and a config; ``examine`` runs the requested checks.
"""

from deploy.doctor.examine import Questions, examine
from deploy.doctor.findings import Finding, Level

__all__ = ["Finding", "Level", "Questions", "examine"]
