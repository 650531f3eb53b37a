"""The policy that ships with the package, and how it was made."""
