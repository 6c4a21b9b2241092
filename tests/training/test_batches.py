"""Which examples a step trains on: a function of seed and step, whole epochs, no example twice in a batch."""

from nrt_cli.workflows.train import batch_for

EXAMPLES = list(range(10))


def epoch(config, first):
    return [batch_for(EXAMPLES, config, step) for step in (first, first + 1)]


def test_an_epoch_takes_whole_batches_without_repeating_an_example(tiny_config):
    """10 examples in batches of 4: two batches an epoch, two examples left for another one."""
    config = tiny_config()
    for first in (1, 3, 5):
        seen = [example for batch in epoch(config, first) for example in batch]
        assert len(seen) == len(set(seen)) == 8


def test_each_epoch_and_each_seed_has_an_order_of_its_own(tiny_config):
    config = tiny_config()
    orders = [epoch(config, 1), epoch(config, 3), epoch(config, 5), epoch(tiny_config("seed=1"), 1)]
    assert len({str(order) for order in orders}) == 4
    assert epoch(tiny_config(), 1) == orders[0]
