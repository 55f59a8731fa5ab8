"""One of each part that another package can add to dynaspec, a tree aside (tree_package)."""
