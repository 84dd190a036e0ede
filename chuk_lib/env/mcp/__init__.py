"""Tools of MCP servers: a client on the official SDK (the `mcp` extra).

`servers` reads what the user names, `stdio` talks to a process, `supervisor` keeps one server
alive, `recording` repeats a run without it, and `client` gives the tools to the rest of chuk.
"""
