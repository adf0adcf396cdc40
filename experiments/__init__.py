"""The CIFAR-10 study and its runner."""
