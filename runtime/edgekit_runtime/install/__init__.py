"""Installation: what makes a board run the daemon, and what it is installed from without internet.

Files are planned as text by pure functions (`unit`, `accounts`, `settings`) and written by one
shell (`files`), which never takes away what somebody edited. Nothing here starts or enables a
service: the commands that do are told.
"""
