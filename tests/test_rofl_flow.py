"""Optic flow of ROFL frames: against an oracle in NumPy, itself checked by moving the eye; gradients; soft rims; batches; bad input."""

import numpy as np
import pytest
import rofl_oracle as oracle
import torch
from scipy.special import expit

from zoo.data.rofl import World, flow, render, sizes

CATEGORIES = [
    *(("fixate", n) for n in (0, 1, 2, 4, 8)),
    *(("transl", n) for n in (0, 1, 4)),
    *(("obj", n) for n in (1, 2, 4)),
    *(("terrain", n) for n in (1, 4, 8)),
    *(("pursuit", n) for n in (1, 2, 4)),
]
MARGIN = 1e-5


def draw(kind, n, seed=0):
    """Causes of one frame as NumPy arrays, from broad laws of their own."""
    rng = np.random.default_rng([seed, n, len(kind)])
    total, difference = rng.uniform(-0.95, 0.95, 2)
    causes = {"fixation": np.array([total + difference, total - difference]) / 2}
    if kind != "obj":
        causes["self_velocity"] = rng.uniform(-1, 1, 3) * (1, 1, kind != "terrain")
    if n:
        angles = rng.uniform(-0.6, 0.6, (n, 2))
        angles[0] *= kind != "pursuit"
        causes["object_position"] = np.concatenate([angles, rng.uniform(0.5, 1.0, (n, 1))], axis=1)
        if kind != "terrain":
            causes["object_velocity"] = rng.uniform(-1, 1, (n, 3))
    return causes


def batch(frames, dtype=torch.float64):
    return {name: torch.tensor(np.stack([frame[name] for frame in frames]), dtype=dtype) for name in frames[0]}


def far_from_rims(kind, n, resolution, margin=1e-3):
    """Causes of a frame in which no pixel's ray passes a rim within ``margin`` metres."""
    for seed in range(100):
        causes = draw(kind, n, seed)
        expected = oracle.frame(kind, causes, resolution)
        if n == 0 or (not expected.near_a_rim(margin).any() and (expected.size_eff > 0).all()):
            return causes
    raise AssertionError("no such frame among 100")


# The oracle


def retinal_angles(points, rotation):
    x = oracle.rotate(rotation.T, points)
    return np.stack([np.arctan2(x[..., 0], x[..., 2]), np.arctan2(x[..., 1], x[..., 2])])


def turned_towards(rotation, point):
    """The eye's rotation once its gaze has moved to ``point`` by the shortest way."""
    old, new = rotation[:, 2], point / np.linalg.norm(point)
    axis = np.cross(old, new)
    sine = np.linalg.norm(axis)
    return rotation if sine == 0 else oracle.turn(axis / sine, np.arctan2(sine, old @ new)) @ rotation


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("kind", "n"), CATEGORIES)
def test_the_oracle_gives_the_displacement_of_what_is_seen_when_the_eye_moves_and_turns(kind, n, residual, dt=1e-4):
    causes = draw(kind, n, seed=7)
    seen = oracle.frame(kind, causes, residual=residual)
    centres = np.array([oracle.disc_centre(causes["fixation"], one) for one in causes.get("object_position", [])])
    eye_velocity = causes.get("self_velocity", np.zeros(3))
    velocities = causes.get("object_velocity", np.zeros((n, 3))) + (residual and kind != "terrain") * eye_velocity
    rotation = oracle.gaze_rotation(causes["fixation"])
    points = oracle.at_depth(oracle.rotate(rotation, oracle.rays(17)), seen.depth)
    point_velocity = np.zeros_like(points)
    for centre, velocity in zip(centres, velocities, strict=True):
        point_velocity[seen.depth == centre[2]] = velocity
    tracked = {"fixate": np.array([*causes["fixation"], 1.0]), "terrain": points[8, 8], "pursuit": centres[0] if n else None}.get(kind)
    tracked_velocity = {"pursuit": velocities[0] if n else None, "terrain": point_velocity[8, 8]}.get(kind, 0.0)

    def view(t):
        eye = eye_velocity * t
        turned = rotation if tracked is None else turned_towards(rotation, tracked + tracked_velocity * t - eye)
        return retinal_angles(points + point_velocity * t - eye, turned)

    np.testing.assert_allclose(seen.flow, (view(dt) - view(-dt)) / (2 * dt), atol=1e-6)


def test_the_oracle_turns_the_eye_without_torsion():
    rotation = oracle.gaze_rotation(np.array([0.3, -0.4]))
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-15)
    np.testing.assert_allclose(rotation[:, 2], np.array([0.3, -0.4, 1.0]) / np.sqrt(1.25), atol=1e-15)
    axis = np.array([0.4, 0.3, 0.0])
    np.testing.assert_allclose(rotation @ axis, axis, atol=1e-15)


# Against the oracle


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("kind", "n"), CATEGORIES)
@pytest.mark.parametrize(("resolution", "count"), [(17, 6), (33, 2)])
def test_flow_and_sizes_are_the_oracles(kind, n, resolution, count, residual):
    world = World(f"{kind}-{n}", resolution, residual=residual)
    frames = [draw(kind, n, seed) for seed in range(count)]
    expected = [oracle.frame(kind, frame, resolution, residual=residual) for frame in frames]
    assert not any(frame.near_a_rim(1e-12).any() for frame in expected)

    found = flow(batch(frames), world)
    assert found.dtype == torch.float64 and found.shape == (count, 2, resolution, resolution)
    np.testing.assert_allclose(found, np.stack([frame.flow for frame in expected]), rtol=0, atol=1e-12)
    if n:
        size, size_eff = sizes(batch(frames), world)
        np.testing.assert_allclose(size, np.stack([frame.size for frame in expected]), rtol=0, atol=1e-14)
        np.testing.assert_allclose(size_eff, np.stack([frame.size_eff for frame in expected]), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "n"), CATEGORIES)
def test_float32_differs_by_rounding_only(kind, n):
    frames = [draw(kind, n, seed) for seed in range(20)]
    found = flow(batch(frames, torch.float32), World(f"{kind}-{n}"))
    assert found.dtype == torch.float32
    compared = 0
    for one, frame in zip(found, frames, strict=True):
        expected = oracle.frame(kind, {name: value.astype(np.float32).astype(float) for name, value in frame.items()})
        clear = ~expected.near_a_rim(MARGIN)
        if kind == "terrain" and not clear[8, 8]:
            continue
        assert np.abs(one.numpy() - expected.flow)[:, clear].max() < 1e-5 * np.abs(expected.flow).max()
        compared += clear.sum()
    assert compared >= 0.99 * 20 * 17 * 17


def test_a_fine_grid_and_another_field_of_view():
    causes = draw("fixate", 2, seed=3)
    for resolution, fov in [(65, 45.0), (9, 20.0)]:
        world = World("fixate-2", resolution, fov=fov, radius=0.2)
        expected = oracle.frame("fixate", causes, resolution, radius=0.2, fov=np.deg2rad(fov))
        np.testing.assert_allclose(flow(batch([causes]), world)[0], expected.flow, rtol=0, atol=1e-12)


# Laws of the geometry


@pytest.mark.parametrize("resolution", [17, 33])
@pytest.mark.parametrize(("kind", "n"), [("fixate", 0), ("terrain", 1), ("terrain", 4), ("pursuit", 1)])
def test_what_is_tracked_does_not_move_on_the_retina(kind, n, resolution):
    frames = [draw(kind, n, seed) for seed in range(50)]
    middle = resolution // 2
    found = flow(batch(frames), World(f"{kind}-{n}", resolution))
    assert found.abs().amax((1, 2, 3)).min() > 0.01
    assert found[:, :, middle, middle].abs().max() < 1e-13
    single = flow(batch(frames, torch.float32), World(f"{kind}-{n}", resolution))
    assert single[:, :, middle, middle].abs().max() < 1e-6


def test_what_is_tracked_between_soft_discs_does_not_move_either():
    frames = [draw("terrain", 4, seed) for seed in range(50)]
    found = flow(batch(frames), World("terrain-4"), 0.1)
    assert found[:, :, 8, 8].abs().max() < 1e-13
    assert (found - flow(batch(frames), World("terrain-4"))).abs().max() > 0.1


def test_of_several_discs_the_nearest_is_seen_and_pursuit_holds_its_own_still():
    causes = draw("pursuit", 2)
    causes["object_position"] = np.array([[0.0, 0.0, 0.6], [0.0, 0.0, 0.8]])
    assert flow(batch([causes]), World("pursuit-2"))[0, :, 8, 8].abs().max() < 1e-13
    causes["object_position"][:, 2] = 0.8, 0.6
    assert flow(batch([causes]), World("pursuit-2"))[0, :, 8, 8].abs().max() > 0.1
    size, size_eff = sizes(batch([causes]), World("pursuit-2"))
    assert size[0, 0] > size_eff[0, 0] == 0 and size_eff[0, 1] == size[0, 1]


@pytest.mark.parametrize("n", [1, 4])
def test_an_eye_at_rest_sees_no_motion_outside_the_discs(n):
    frames = [draw("obj", n, seed) for seed in range(20)]
    found = flow(batch(frames), World(f"obj-{n}")).numpy()
    wall = np.stack([oracle.frame("obj", frame).depth == 1.0 for frame in frames])
    assert 0.2 < wall.mean() < 0.99
    assert (found.transpose(0, 2, 3, 1)[wall] == 0).all()
    assert (np.abs(found).max(1)[~wall] > 0).all()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("kind", "n"), CATEGORIES)
def test_flow_is_linear_in_the_velocities(kind, n, residual):
    world = World(f"{kind}-{n}", residual=residual)
    first, second = batch([draw(kind, n, seed=1)]), batch([draw(kind, n, seed=2)])
    velocities = [name for name in first if name.endswith("velocity")]
    second |= {name: value for name, value in first.items() if name not in velocities}
    mixed = first | {name: 0.7 * first[name] - 1.9 * second[name] for name in velocities}
    expected = 0.7 * flow(first, world) - 1.9 * flow(second, world)
    torch.testing.assert_close(flow(mixed, world), expected, rtol=0, atol=1e-12)


def test_a_gaze_straight_ahead_turns_nothing():
    causes = draw("transl", 1) | {"fixation": np.zeros(2), "object_position": np.array([[0.4, -0.2, 0.6]])}
    found = flow(batch([causes]), World("transl-1"))
    np.testing.assert_allclose(found[0], oracle.frame("transl", causes).flow, rtol=0, atol=1e-12)
    vx, vy, vz = -causes["self_velocity"]
    a = np.deg2rad(np.linspace(-45, 45, 17))
    by_hand = vx * np.cos(a) ** 2 - vz * np.sin(a) * np.cos(a)  # x = (tan a, tan b, 1) on the wall
    np.testing.assert_allclose(found[0, 0, 16], by_hand, atol=1e-12)
    by_hand = vy * np.cos(a) ** 2 - vz * np.sin(a) * np.cos(a)
    np.testing.assert_allclose(found[0, 1, :, 0], by_hand, atol=1e-12)


# Gradients


@pytest.mark.parametrize("edge", [0.0, 0.02])
@pytest.mark.parametrize(
    ("kind", "n", "residual"),
    [("fixate", 0, False), ("fixate", 2, False), ("transl", 1, True), ("obj", 1, False), ("terrain", 2, False), ("pursuit", 2, False),
     ("pursuit", 2, True)],
)
def test_gradients_are_those_of_finite_differences(kind, n, edge, residual):
    world = World(f"{kind}-{n}", 7, residual=residual)
    causes = batch([far_from_rims(kind, n, 7)])
    names = list(causes)
    inputs = tuple(value[0].requires_grad_() for value in causes.values())
    assert torch.autograd.gradcheck(lambda *values: flow(dict(zip(names, values, strict=True)), world, edge), inputs, atol=1e-6)


@pytest.mark.parametrize("kind", ["fixate", "obj", "terrain", "pursuit"])
@pytest.mark.parametrize("edge", [0.0, 0.02])
def test_gradients_hold_where_the_gaze_has_no_direction(kind, edge):
    world = World(f"{kind}-1", 7)
    causes = batch([draw(kind, 1) | {"fixation": np.zeros(2), "object_position": np.array([[0.0, 0.0, 0.7]])}])
    names = list(causes)
    inputs = tuple(value[0].requires_grad_() for value in causes.values())
    assert torch.autograd.gradcheck(lambda *values: flow(dict(zip(names, values, strict=True)), world, edge), inputs, atol=1e-6)


def test_sizes_have_gradients_once_the_rim_is_soft():
    world = World("fixate-2", 9)
    causes = batch([far_from_rims("fixate", 2, 9)])
    fixation, position = (causes[name][0].requires_grad_() for name in ("fixation", "object_position"))
    rest = {name: causes[name][0] for name in ("self_velocity", "object_velocity")}
    for part in (0, 1):
        def size(fixation, position, part=part):
            return sizes(rest | {"fixation": fixation, "object_position": position}, world, 0.02)[part]
        assert torch.autograd.gradcheck(size, (fixation, position), atol=1e-7)
        assert (torch.autograd.grad(size(fixation, position).sum(), position)[0][:, 2] != 0).all()


# Soft rims


@pytest.mark.parametrize(("kind", "n"), [("fixate", 1), ("fixate", 4), ("transl", 2), ("obj", 4)])
@pytest.mark.parametrize("edge", [0.1, 0.02])
def test_soft_discs_are_painted_one_over_the_other_far_to_near(kind, n, edge):
    causes, world = draw(kind, n, seed=5), World(f"{kind}-{n}")
    distance = oracle.frame(kind, causes).distance
    masks = expit((0.25**2 - distance**2) / (2 * 0.25 * edge))
    seen = np.empty_like(masks)
    painted = oracle.frame(kind, {name: causes[name] for name in causes if not name.startswith("object")}).flow
    for k in np.argsort(-causes["object_position"][:, 2]):
        alone = {name: value[k:k + 1] if name.startswith("object") else value for name, value in causes.items()}
        painted = (1 - masks[k]) * painted + masks[k] * oracle.frame(kind, alone, radius=1e9).flow
        nearer = causes["object_position"][:, 2] < causes["object_position"][k, 2]
        seen[k] = masks[k] * np.prod(1 - masks[nearer], axis=0)
    np.testing.assert_allclose(flow(batch([causes]), world, edge)[0], painted, rtol=0, atol=1e-12)
    size, size_eff = sizes(batch([causes]), world, edge)
    np.testing.assert_allclose(size[0], masks.mean((1, 2)), rtol=1e-10)
    np.testing.assert_allclose(size_eff[0], seen.mean((1, 2)), rtol=1e-10)


@pytest.mark.parametrize(("kind", "n"), CATEGORIES)
def test_soft_rims_turn_hard(kind, n):
    world = World(f"{kind}-{n}", 9)
    causes = batch([far_from_rims(kind, n, 9)])
    hard = flow(causes, world)
    errors = [float((flow(causes, world, edge) - hard).abs().max()) for edge in (0.03, 0.003, 0.0003, 1e-5)]
    if n == 0:
        assert errors == [0.0] * 4
    else:
        assert errors[0] > errors[1] >= errors[2] >= errors[3] and errors[0] > 1e-3 and errors[3] < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sharpest_soft_rim_overflows_nothing(dtype):
    causes = {name: value.requires_grad_() for name, value in batch([draw("fixate", 4)], dtype).items()}
    found = flow(causes, World("fixate-4"), 1e-9)
    gradients = torch.autograd.grad(found.square().sum(), list(causes.values()))
    assert torch.isfinite(found).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


# Batches


@pytest.mark.parametrize("edge", [0.0, 0.02])
@pytest.mark.parametrize(("kind", "n"), CATEGORIES)
def test_chains_draws_and_images_are_as_many_frames(kind, n, edge):
    world = World(f"{kind}-{n}", 9)
    flat = batch([draw(kind, n, seed) for seed in range(12)])
    shaped = {name: value.reshape(2, 3, 2, *value.shape[1:]) for name, value in flat.items()}
    found = flow(shaped, world, edge)
    assert found.shape == (2, 3, 2, 2, 9, 9)
    torch.testing.assert_close(found.flatten(0, 2), flow(flat, world, edge), rtol=0, atol=1e-14)
    one = flow({name: value[5] for name, value in flat.items()}, world, edge)
    torch.testing.assert_close(one, found[0, 2, 1], rtol=0, atol=1e-14)
    if n:
        for part, expected in zip(sizes(shaped, world, edge), sizes(flat, world, edge), strict=True):
            assert part.shape == (2, 3, 2, n)
            torch.testing.assert_close(part.flatten(0, 2), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "moved"), [(kind, name) for kind in ("fixate", "obj", "terrain", "pursuit") for name in draw(kind, 2)])
def test_leading_dimensions_broadcast(kind, moved):
    world = World(f"{kind}-2", 9)
    causes = batch([draw(kind, 2, seed) for seed in range(4)])
    table = flow({name: value[:, None] if name == moved else value for name, value in causes.items()}, world)
    assert table.shape == (4, 4, 2, 9, 9)
    for i in range(4):
        one = causes | {moved: causes[moved][i].expand_as(causes[moved])}
        torch.testing.assert_close(table[i], flow(one, world), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "n"), [("fixate", 0), ("fixate", 1), ("obj", 2), ("terrain", 2), ("pursuit", 2)])
def test_frames_rendered_in_bulk_are_the_same(kind, n):
    world = World(f"{kind}-{n}", 5)
    causes = batch([draw(kind, n, seed) for seed in range(600)])
    expected = flow(causes, world)
    torch.testing.assert_close(render(causes, world), expected, rtol=0, atol=1e-14)
    out = torch.full((600, 2, 5, 5), torch.nan, dtype=torch.float64)
    assert render(causes, world, out).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)


# Bad input


@pytest.mark.parametrize("out", [torch.zeros(3, 2, 5, 5), torch.zeros(4, 2, 5, 5).double(), torch.zeros(4, 2, 5, 10)[..., ::2]])
def test_memory_that_does_not_fit_is_refused(out):
    causes = batch([draw("fixate", 1, seed) for seed in range(4)], torch.float32)
    with pytest.raises(ValueError, match="out must be contiguous, torch.float32"):
        render(causes, World("fixate-1", 5), out)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"fixation": torch.zeros(2, 3)}, ["fixation", "3"]),
        ({"fixation": None}, ["fixation"]),
        ({"self_velocity": torch.zeros(2, 2)}, ["self_velocity", "2"]),
        ({"object_position": torch.zeros(2, 3, 3)}, ["object_position", "2, 3"]),
        ({"object_position": torch.zeros(3)}, ["object_position", "2, 3"]),
        ({"object_position": torch.ones(2, 2, 3, dtype=torch.long)}, ["object_position", "int64"]),
        ({"self_velocity": torch.zeros(5, 3)}, ["(5,)", "(2,)"]),
        ({"object_position": torch.zeros(2, 1, 3)}, ["object_position", "2"]),
        ({"object_position": None}, ["object_position"]),
        ({"object_velocity": torch.zeros(2, 2, 4)}, ["object_velocity", "4"]),
        ({"fixations": torch.zeros(2, 2)}, ["fixations", "fixation"]),
    ],
)
def test_causes_that_are_not_the_worlds_are_refused(change, names):
    causes = batch([draw("fixate", 2, seed) for seed in range(2)], torch.float32) | change
    causes = {name: value for name, value in causes.items() if value is not None}
    of_velocity = any(name.endswith("velocity") for name in change)
    for function in (flow,) if of_velocity else (flow, sizes):
        with pytest.raises(ValueError) as error:
            function(causes, World("fixate-2"))
        assert all(name in str(error.value) for name in names), str(error.value)


def test_sizes_need_no_velocities():
    causes = batch([draw("fixate", 2)])
    places = {name: causes[name] for name in ("fixation", "object_position")}
    torch.testing.assert_close(sizes(places, World("fixate-2")), sizes(causes, World("fixate-2")), rtol=0, atol=0)


def test_a_negative_edge_is_refused():
    with pytest.raises(ValueError, match="edge"):
        flow(batch([draw("fixate", 1)]), World("fixate-1"), -0.1)
