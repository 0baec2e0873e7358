"""What ``vhost-user doctor`` looks at, a file for each part of the host."""
