"""Settings of a deployment and the checks of a Serve configuration file."""
