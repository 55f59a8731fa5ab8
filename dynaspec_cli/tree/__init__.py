"""Tree policies: how a draft tree grows from the drafter's scores, and when it stops."""
