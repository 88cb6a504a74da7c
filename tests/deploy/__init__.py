"""What an operator installs: the Debian package, the container image, the Kubernetes manifests."""
