"""What is handed out, wheels and a source archive: how they are built, checked and tried.

``python3 -m release.build`` makes them, ``release.check`` examines them, ``release.again`` builds
them a second time and compares, and ``release.trial`` installs them into clean systems.
"""
