"""Whether a saved state fits a loader. Separate from the loader, which goes by it, because states come from outside."""


def check_state(state: dict[str, int | str], identity: dict[str, int | str], *, num_rows: int) -> None:
    """Check what `Loader.load_state_dict` is given.

    Args:
        state: what was saved.
        identity: what the order of the loader depends on.
        num_rows: images that all ranks together take of an epoch.

    Raises:
        ValueError: the state is of another order, or damaged.
    """
    if set(state) != {*identity, "epoch", "images"}:
        raise ValueError(f"a loader's state must come from its state_dict(), found the keys {sorted(state)}")
    for key, value in identity.items():
        if state[key] != value:
            raise ValueError(
                f"the loader's {key} must be the one that the state was saved with, found {value} and {state[key]} in "
                f"the state: give the same data, seed and batch size"
            )
    for key in ("epoch", "images"):
        if type(state[key]) is not int:
            raise ValueError(f"a state's {key} must be a whole number, found {state[key]!r}: the state is damaged")
    if state["epoch"] < 0 or not 0 <= state["images"] <= num_rows:
        raise ValueError(
            f"a state must lie in an epoch of {num_rows} images, found image {state['images']} of epoch "
            f"{state['epoch']}: it is damaged"
        )
