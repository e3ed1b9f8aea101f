"""The names of networks and tensors in the package efficientnet_pytorch."""
