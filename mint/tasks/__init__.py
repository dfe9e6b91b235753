"""Tasks: what is asked, how answers are scored, and the commands on them."""
