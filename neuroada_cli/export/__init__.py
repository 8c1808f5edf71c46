"""What others read of an adapter: stock PEFT's files, a server's weight patches, other engines' models."""
