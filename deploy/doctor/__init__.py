"""``breakwater doctor``: looks at what a run needs of this machine, says what is wrong and how to mend it.

``findings`` has the form of what is found; ``machine`` looks at Python, packages and resources, ``party`` at a folder
of certificates, ``network`` at ports and a server, ``data`` at data files and a config; ``examine`` runs what was asked
for.
"""

from deploy.doctor.examine import Questions, examine
from deploy.doctor.findings import Finding, Level

__all__ = ["Finding", "Level", "Questions", "examine"]
