"""The node from outside: played to, watched, measured, and broken on purpose."""
