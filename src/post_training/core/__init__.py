"""What every other folder may use, and which uses none of them."""
