"""A loss of a recovery: `--losses agreement=0.5`."""


def agreement(batch):
    """Return the total variation between both models' distributions of the next token, [n], from 0 to 1."""
    student, teacher = (logits.float().softmax(-1) for logits in (batch.logits, batch.wanted))
    return (student - teacher).abs().sum(-1) / 2
