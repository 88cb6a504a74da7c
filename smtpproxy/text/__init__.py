"""Text from peers: escaped by one function, printed in one place."""
