"""Looking into machines that run: `domzero debug`, and the socket on which a machine answers it."""
