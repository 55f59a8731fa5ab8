"""From logits to tokens: one function forms the target's distribution, one walk verifies a draft
tree."""
