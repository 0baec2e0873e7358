"""What Xen and Linux do, shown without the package: the ground that its tests stand on."""
