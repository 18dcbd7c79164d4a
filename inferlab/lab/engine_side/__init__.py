"""Scripts that run in the engines' interpreter, or beside an engine, and never import `inferlab`.

Contract: each takes JSON lines on stdin and answers in JSON lines on stdout. Engines print to
stdout as they please, so a script first keeps the real stdout for its answers and sends everything
else to stderr, which is the log.
"""
