from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.config.batch import BatchPlan
from segformer_spark.data.sampler import Position, TrainBatchSampler, epoch_order, rank_indices


def steps_of(num_images: int, plan: BatchPlan, seed: int, position: Position) -> list[set[int]]:
    """The set of images in each optimizer step, over all ranks."""
    steps: list[list[int]] = []
    for rank in range(plan.world_size):
        sampler = TrainBatchSampler(num_images, plan, rank, seed)
        sampler.start_at(position)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for number, batch in enumerate(batches):
            step = number // plan.accumulation_steps
            if len(steps) <= step:
                steps.append([])
            assert all(epoch == position.epoch for epoch, _ in batch)
            steps[step] += [index for _, index in batch]
    assert all(len(step) == len(set(step)) == plan.global_batch for step in steps)
    return [set(step) for step in steps]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 40), st.integers(0, 5))
def test_the_order_does_not_depend_on_the_ranks(
    micro: int, accumulation: int, world: int, extra: int, epoch: int
) -> None:
    total = micro * accumulation * world
    num_images = total + extra
    position = Position(epoch, 0)
    ours = steps_of(num_images, BatchPlan(micro, accumulation, world), 3, position)
    alone = steps_of(num_images, BatchPlan(total, 1, 1), 3, position)
    assert ours == alone
    seen = [index for step in ours for index in step]
    assert len(seen) == len(set(seen)) == num_images // total * total


def test_ranks_fill_each_accumulation_step_together() -> None:
    """The images that batch norm and Dice see at once are the same for 1 x 4 and 2 x 2."""
    num_images, seed = 37, 3
    order = [int(index) for index in epoch_order(num_images, seed, 0)]
    plan = BatchPlan(2, 3, 2)
    batches = [list(TrainBatchSampler(num_images, plan, rank, seed)) for rank in range(2)]
    for number in range(9):
        together = [index for rank in range(2) for _, index in batches[rank][number]]
        assert together == order[number * 4 : number * 4 + 4]


@given(st.integers(0, 4))
def test_starting_in_mid_epoch_continues_the_order(step: int) -> None:
    plan = BatchPlan(2, 2, 2)
    whole = steps_of(45, plan, 1, Position(2, 0))
    assert steps_of(45, plan, 1, Position(2, step)) == whole[step:]


def test_each_epoch_has_its_own_order() -> None:
    orders = {tuple(epoch_order(30, seed, epoch)) for seed in (1, 2) for epoch in range(5)}
    assert len(orders) == 10
    assert all(sorted(order) == list(range(30)) for order in orders)


@given(st.integers(0, 50), st.integers(1, 7))
def test_evaluation_takes_each_image_once(num_images: int, world: int) -> None:
    shares = [rank_indices(num_images, rank, world) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(num_images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
