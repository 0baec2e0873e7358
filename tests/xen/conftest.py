"""What stands in ``dom0`` is collected there and not here."""

collect_ignore = ["dom0"]
