"""What the virtual machines of the tests share: Debian's packages, and archives to boot from."""
