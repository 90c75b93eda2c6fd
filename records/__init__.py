"""What a run leaves on disk, and how it is read again: tables, summary, figure, and who owns the folder.

Knows a run's folder only: neither its settings nor its devices. `server_app` writes, `experiments` reads.
"""
