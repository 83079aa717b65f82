"""What this project is measured against: each peer is a process of its own, and prints JSON."""
