"""What is deployed: the image, the compose file and the Kubernetes manifests."""
