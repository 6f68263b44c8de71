"""Running a federation: the command line, the local launcher, the demo, configs."""
