"""Another machine over TVM's RPC: the server that runs on it, and sessions that look like those of this machine."""
