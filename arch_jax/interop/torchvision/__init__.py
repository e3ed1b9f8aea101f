"""torchvision's names of networks and tensors, one file a family. A file is found by lying here."""
