"""Who is who on the link: certificates, the authority that issues them, TLS, and who may take part."""
