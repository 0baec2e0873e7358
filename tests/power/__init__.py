"""What of a disk's data outlives a power cut.

The image lies on a file system whose disk has a volatile write cache: what was written and not put
on stable storage since may survive a power cut or not, sector by sector. The driver keeps account
of what it was promised. Each state that a power cut could leave at a moment has to keep all that
was promised before.
"""
