"""Text of peers on its way to a person: escaped in one function, printed in one place."""
