"""What ROFL frames are drawn from: each law before rejection, the rejection rule, seeds, names of the factors, bad settings."""

import numpy as np
import pytest
import rofl_oracle as oracle
import torch
from scipy import stats

from zoo.data.rofl import World, accepted, causes_of, factors, generate, sample

N = 20_000
KINDS = ["fixate", "transl", "obj", "terrain", "pursuit"]
LEAST_P = 1e-3  # of a test that holds; seeds are fixed


def drawn(world, n=N, seed=0, dtype=torch.float64):
    causes = sample(world, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return {name: value.numpy() for name, value in causes.items()}


def assert_uniform(values, low, high):
    assert (values >= low).all() and (values <= high).all()
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > LEAST_P


def assert_same_law(first, second):
    assert stats.ks_2samp(first, second).pvalue > LEAST_P


def assert_independent(*columns):
    """No pair of columns is related monotonically, nor are the distances from their medians, by ranks."""
    ranks = np.stack([stats.rankdata(column) / len(column) - 0.5 for column in columns])
    correlation = np.corrcoef(np.concatenate([ranks, np.abs(ranks)]))
    itself = np.tile(np.eye(len(columns), dtype=bool), (2, 2))
    assert np.abs(correlation[~itself]).max() < 4.5 / np.sqrt(len(columns[0]))


def speed_and_direction(velocity):
    """Speed, cosine of the angle from the z axis and azimuth of velocities (n, 3)."""
    norm = np.linalg.norm(velocity, axis=-1)
    return norm, velocity[:, 2] / norm, np.arctan2(velocity[:, 1], velocity[:, 0])


def as_frames(causes):
    return [{name: np.asarray(value[i], dtype=float) for name, value in causes.items()} for i in range(len(causes["fixation"]))]


# The laws before rejection


@pytest.mark.parametrize("kind", ["fixate", "transl", "obj", "pursuit"])
def test_fixation_is_uniform_on_the_diamond(kind):
    x, y = drawn(World(f"{kind}-1"))["fixation"].T
    assert (np.abs(x) + np.abs(y) < 1).all()
    assert_uniform(x + y, -1, 1)
    assert_uniform(x - y, -1, 1)
    assert_independent(x + y, x - y)
    np.testing.assert_allclose([x.std(), y.std()], 1 / np.sqrt(6), atol=0.006)  # .408


@pytest.mark.parametrize(("kind", "name"), [("fixate", "self_velocity"), ("fixate", "object_velocity"), ("obj", "object_velocity")])
@pytest.mark.parametrize("speed", [(0.01, 1.0), (0.5, 2.0)])
def test_velocities_have_an_isotropic_direction_and_a_uniform_speed(kind, name, speed):
    velocity = drawn(World(f"{kind}-2", speed=speed))[name]
    velocity = velocity[:, 1] if name == "object_velocity" else velocity
    norm, cosine, azimuth = speed_and_direction(velocity)
    assert_uniform(norm, *speed)
    assert_uniform(cosine, -1, 1)
    assert_uniform(azimuth, -np.pi, np.pi)
    assert_independent(norm, cosine, azimuth)


@pytest.mark.parametrize("kind", ["fixate", "obj", "terrain"])
@pytest.mark.parametrize(("depth", "fov"), [((0.5, 1.0), 45.0), ((0.7, 0.8), 30.0)])
def test_discs_are_uniform_over_the_field_and_in_depth(kind, depth, fov):
    position = drawn(World(f"{kind}-2", depth=depth, fov=fov))["object_position"]
    half = np.deg2rad(fov)
    for i in range(2):
        assert_uniform(position[:, i, 0], -half, half)
        assert_uniform(position[:, i, 1], -half, half)
        assert_uniform(position[:, i, 2], *depth)


def test_all_causes_are_independent_of_each_other():
    causes = drawn(World("fixate-2"))
    x, y = causes["fixation"].T
    columns = [x + y, x - y, *causes["object_position"].reshape(N, -1).T]
    for velocity in (causes["self_velocity"], *causes["object_velocity"].transpose(1, 0, 2)):
        columns += speed_and_direction(velocity)
    assert_independent(*columns)


@pytest.mark.parametrize("resolution", [17, 33])
def test_angles_on_the_grid_are_uniform_over_the_inner_pixels(resolution):
    position = drawn(World("fixate-2", resolution, grid=True))["object_position"]
    pixels = np.deg2rad(np.linspace(-45, 45, resolution)[1:-1])
    nearest = np.abs(position[..., :2, None] - pixels).argmin(-1)
    np.testing.assert_allclose(position[..., :2], pixels[nearest], atol=1e-15)
    counts = np.zeros((len(pixels), len(pixels)))
    np.add.at(counts, (nearest[..., 0].ravel(), nearest[..., 1].ravel()), 1)
    assert stats.chisquare(counts.ravel()).pvalue > LEAST_P
    if resolution == 17:
        assert counts.shape == (15, 15) and np.isclose(np.rad2deg(pixels[-1]), 39.375)


def test_terrain_is_crossed_parallel_to_the_wall_with_the_gaze_well_aside():
    causes = drawn(World("terrain-1"))
    assert set(causes) == {"fixation", "self_velocity", "object_position"}
    x, y = causes["fixation"].T
    far = np.abs(x) + np.abs(y)
    assert (far >= 0.75).all() and (far < 1).all()
    square = np.random.default_rng(0).uniform(-1, 1, (20 * N, 2))
    truth = square[(np.abs(square).sum(1) < 1) & (np.abs(square).sum(1) >= 0.75)].T
    for view in (lambda x, y: x, lambda x, y: x + y, lambda x, y: x - y, lambda x, y: np.arctan2(y, x), lambda x, y: abs(x) + abs(y)):
        assert_same_law(view(x, y), view(*truth))

    vx, vy, vz = causes["self_velocity"].T
    assert (vz == 0).all()
    assert_uniform(np.hypot(vx, vy), 0.01, 1.0)
    heading = np.arctan2(vy, vx) - np.arctan2(y, x)
    limit = np.sin(np.deg2rad(80))
    assert (np.cos(heading) > 0).all()
    assert_uniform(np.sin(heading), -limit - 1e-12, limit + 1e-12)
    assert_independent(np.hypot(vx, vy), np.sin(heading), far)


def test_the_pursued_disc_is_on_the_line_of_gaze():
    position = drawn(World("pursuit-2"))["object_position"]
    assert (position[:, 0, :2] == 0).all()
    assert_uniform(position[:, 0, 2], 0.5, 1.0)
    assert_uniform(position[:, 1, 0], -np.pi / 4, np.pi / 4)
    assert_uniform(position[:, 1, 1], -np.pi / 4, np.pi / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "n"), [("fixate", 0), ("fixate", 1), ("obj", 1), ("terrain", 1), ("pursuit", 2)])
def test_causes_come_in_the_shapes_of_their_category(kind, n, dtype):
    shapes = {"fixation": (5, 2), "self_velocity": (5, 3), "object_position": (5, n, 3), "object_velocity": (5, n, 3)}
    absent = {"obj": {"self_velocity"}, "terrain": {"object_velocity"}}.get(kind, set())
    absent |= set() if n else {"object_position", "object_velocity"}
    expected = {name: shape for name, shape in shapes.items() if name not in absent}
    world = World(f"{kind}-{n}")
    for causes in (sample(world, 5, generator=torch.Generator().manual_seed(0), dtype=dtype), generate(world, 5, dtype=dtype)):
        assert {name: tuple(value.shape) for name, value in causes.items()} == expected
        assert {value.dtype for value in causes.values()} == {dtype}


# Rejection


def accepted_in_parts(world, n, seed):
    causes = sample(world, n, generator=torch.Generator().manual_seed(seed))
    return causes, torch.cat([accepted(dict(zip(causes, part, strict=True)), world)
                              for part in zip(*(value.split(500) for value in causes.values()), strict=True)])


def test_the_published_share_of_frames_is_accepted_and_gaze_narrows():
    causes, kept = accepted_in_parts(World("fixate-1", grid=True), 200_000, seed=1)
    assert abs(kept.double().mean() - 0.877) < 0.003
    x = causes["fixation"][:, 0]
    assert abs(x.std() - 0.408) < 0.002
    assert abs(x[kept].std() - 0.395) < 0.003


def test_the_published_share_of_a_finer_field_is_accepted():
    _, kept = accepted_in_parts(World("fixate-1", 33, grid=True), 40_000, seed=2)
    assert abs(kept.double().mean() - 0.912) < 0.005


@pytest.mark.parametrize("kind", ["fixate", "transl"])
def test_without_discs_all_frames_are_accepted(kind):
    world = World(f"{kind}-0")
    kept = accepted(sample(world, 1000, generator=torch.Generator().manual_seed(0)), world)
    assert kept.dtype == torch.bool and kept.shape == (1000,) and kept.all()


@pytest.mark.parametrize(("category", "needed"), [("fixate-1", 1), ("transl-2", 1), ("obj-4", 3), ("fixate-8", 5), ("terrain-4", 3)])
@pytest.mark.parametrize(("resolution", "min_size"), [(17, 3.5), (33, 10.5)])
def test_a_frame_counts_if_enough_discs_are_seen(category, needed, resolution, min_size):
    world = World(category, resolution)
    causes = sample(world, 60, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = []
    for frame in as_frames(causes):
        seen = oracle.frame(world.kind, frame, resolution).size_eff * resolution**2
        expected.append(int((np.round(seen) > min_size).sum() >= needed))
    assert 0 < sum(expected) < 60
    assert accepted(causes, world).int().tolist() == expected


def test_a_disc_must_show_strictly_more_pixels_than_min_size():
    world = World("obj-1")
    causes = {"fixation": torch.zeros(1, 2), "object_position": torch.tensor([[[0.0, 0.0, 0.6]]]), "object_velocity": torch.ones(1, 1, 3)}
    pixels = round(float(factors(causes, world)["obj0_size_eff"]) * 289)
    assert pixels == round(float(oracle.frame("obj", as_frames(causes)[0]).size_eff[0]) * 289) > 20
    assert accepted(causes, World("obj-1", min_size=pixels - 0.5)).item()
    assert not accepted(causes, World("obj-1", min_size=pixels)).item()


def test_min_objects_can_be_chosen():
    causes = sample(World("fixate-4"), 200, generator=torch.Generator().manual_seed(0))
    kept = [accepted(causes, World("fixate-4", min_objects=m)) for m in range(5)]
    assert kept[0].all()
    assert all((fewer | ~more).all() for fewer, more in zip(kept, kept[1:], strict=False))
    shares = [float(one.float().mean()) for one in kept]
    assert shares == sorted(shares, reverse=True) and shares[4] < shares[3] < shares[2] < shares[1]


def test_acceptance_takes_chains_and_draws():
    world = World("fixate-2", min_size=30)
    causes = sample(world, 12, generator=torch.Generator().manual_seed(0))
    kept = accepted(causes, world)
    assert kept.shape == (12,) and 0 < kept.sum() < 12
    shaped = {name: value.unflatten(0, (2, 3, 2)) for name, value in causes.items()}
    assert torch.equal(accepted(shaped, world), kept.unflatten(0, (2, 3, 2)))


@pytest.mark.parametrize("category", ["fixate-1", "terrain-4"])
@pytest.mark.parametrize("n", [1, 700])
def test_generation_gives_as_many_accepted_frames_as_asked(category, n):
    world = World(category)
    causes = generate(world, n, seed=0)
    assert {len(value) for value in causes.values()} == {n}
    assert accepted(causes, world).all()


def test_generation_refills_from_the_accepted_part_of_the_law():
    world = World("obj-1", min_size=60)  # about one frame in eight
    causes = generate(world, 3000, seed=0, dtype=torch.float64)
    assert len(causes["fixation"].unique(dim=0)) == 3000
    proposed = sample(world, 30_000, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    kept = accepted(proposed, world)
    for name, value in causes.items():
        flat, truth = value.reshape(3000, -1), proposed[name][kept].flatten(1)
        for column in range(flat.shape[1]):
            assert_same_law(flat[:, column].numpy(), truth[:, column].numpy())


def test_seeds(unchanged_generator):
    world = World("fixate-2")
    with unchanged_generator():
        first, again, other = (generate(world, 50, seed=seed) for seed in (3, 3, 4))
    torch.manual_seed(11)
    torch.testing.assert_close(generate(world, 50, seed=3), first, rtol=0, atol=0)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not (first[name] == other[name]).any()


# Factors

POLAR = ["fix_x", "fix_y", "slf_v_norm", "slf_v_theta", "slf_v_phi",
         "obj0_alpha_x", "obj0_alpha_y", "obj0_z", "obj0_v_norm", "obj0_v_theta", "obj0_v_phi"]
CARTESIAN = ["fix_x", "fix_y", "slf_v_x", "slf_v_y", "slf_v_z", "obj0_x", "obj0_y", "obj0_z", "obj0_v_x", "obj0_v_y", "obj0_v_z"]


def test_the_published_categories_have_the_published_factors():
    assert list(World("fixate-1").factor_names) == list(World("transl-1").factor_names) == POLAR
    assert list(World("fixate-1").cartesian_names) == CARTESIAN
    assert list(World("fixate-0").factor_names) == POLAR[:5] and list(World("fixate-0").cartesian_names) == CARTESIAN[:5]
    assert list(World("obj-1").factor_names) == POLAR[:2] + POLAR[5:]
    assert list(World("obj-1").cartesian_names) == CARTESIAN[:2] + CARTESIAN[5:]


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(("kind", "eye", "disc"), [("fixate", 5, 6), ("transl", 5, 6), ("pursuit", 5, 6), ("obj", 2, 6), ("terrain", 4, 3)])
def test_every_frame_has_as_many_factors_as_it_is_drawn_from(kind, eye, disc, n):
    world = World(f"{kind}-{n}")
    named = factors(generate(world, 4), world)
    for names in (world.factor_names, world.cartesian_names):
        assert len(names) == len(set(names)) == eye + disc * n
        assert all(named[name].shape == (4,) for name in names)
    assert tuple(named)[:len(world.factor_names)] == tuple(world.factor_names)
    assert [name for name in world.factor_names if name.startswith("obj0_")] == [
        name.replace("obj3", "obj0") for name in world.factor_names if name.startswith("obj3_")] or n == 1


def from_polar(norm, theta, phi):
    return np.stack([norm * np.sin(theta) * np.cos(phi), norm * np.sin(theta) * np.sin(phi), norm * np.cos(theta)], axis=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_the_causes_in_polar_and_cartesian_coordinates(kind):
    world = World(f"{kind}-2")
    causes = generate(world, 60, dtype=torch.float64)
    frames = as_frames(causes)
    named = {name: value.numpy() for name, value in factors(causes, world).items()}

    def vector(prefix, parts="xyz"):
        return np.stack([named[prefix + part] for part in parts], axis=-1)

    def polar(prefix):
        norm, theta, phi = vector(prefix, ["norm", "theta", "phi"]).T
        assert min(theta.min(), phi.min()) >= 0 and theta.max() <= np.pi and phi.max() < 2 * np.pi
        return from_polar(norm, theta, phi)

    np.testing.assert_array_equal(vector("fix_", "xy"), causes["fixation"])
    still = np.zeros((60, 3))
    eye = causes["self_velocity"].numpy() if "self_velocity" in causes else still
    if kind != "obj":
        np.testing.assert_array_equal(vector("slf_v_"), eye)
        np.testing.assert_allclose(polar("slf_v_"), eye, atol=1e-14)
    for i in range(2):
        disc = f"obj{i}_"
        np.testing.assert_array_equal(vector(f"{disc}alpha_", "xy"), causes["object_position"][:, i, :2])
        centre = np.stack([oracle.disc_centre(frame["fixation"], frame["object_position"][i]) for frame in frames])
        np.testing.assert_allclose(vector(disc), centre, atol=1e-14)
        np.testing.assert_allclose(from_polar(*vector(disc, ["distance", "theta", "phi"]).T), centre, atol=1e-14)
        wall_point = np.concatenate([causes["fixation"], np.ones((60, 1))], axis=1)
        np.testing.assert_allclose(vector(f"{disc}d"), centre - wall_point, atol=1e-14)
        if kind != "terrain":
            velocity = causes["object_velocity"][:, i].numpy()
            np.testing.assert_array_equal(vector(f"{disc}v_"), velocity)
            np.testing.assert_allclose(polar(f"{disc}v_"), velocity, atol=1e-14)
            np.testing.assert_allclose(vector(f"{disc}dv_"), velocity - eye, atol=1e-14)
            np.testing.assert_allclose(polar(f"{disc}dv_"), velocity - eye, atol=1e-14)
        seen = [oracle.frame(kind, frame) for frame in frames]
        np.testing.assert_allclose(named[f"{disc}size"], [frame.size[i] for frame in seen], atol=1e-14)
        np.testing.assert_allclose(named[f"{disc}size_eff"], [frame.size_eff[i] for frame in seen], atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_causes_can_be_had_back_from_factors(kind):
    world = World(f"{kind}-2")
    causes = generate(world, 10)
    torch.testing.assert_close(causes_of(factors(causes, world), world), causes, rtol=0, atol=0)
    named = factors(causes, world)
    del named["obj1_alpha_y"]
    with pytest.raises(ValueError, match="obj1_alpha_y"):
        causes_of(named, world)


# Bad settings


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"category": "fixat-1"}, ["fixat-1", "fixate", "transl", "obj", "terrain", "pursuit"]),
        ({"category": "fixate-9"}, ["fixate-9", "fixate", "8"]),
        ({"category": "fixate"}, ["'fixate'", "fixate-0"]),
        ({"category": "fixate-1-1"}, ["fixate-1-1", "fixate-0"]),
        ({"category": "obj-0"}, ["obj-0", "obj-1"]),
        ({"category": "terrain-0"}, ["terrain-0", "terrain-1"]),
        ({"category": "pursuit-0"}, ["pursuit-0", "pursuit-1"]),
        ({"category": 1}, ["1", "fixate"]),
        ({"resolution": 16}, ["16", "odd"]),
        ({"resolution": 1}, ["1", "odd"]),
        ({"resolution": 17.0}, ["17.0", "odd"]),
        ({"speed": (1.0, 0.01)}, ["speed", "(1.0, 0.01)", "least"]),
        ({"speed": (-1.0, 1.0)}, ["speed", "-1.0", "above 0"]),
        ({"speed": 1.0}, ["speed", "1.0", "least"]),
        ({"speed": (0.1, float("nan"))}, ["speed", "nan"]),
        ({"depth": (1.0, 0.5)}, ["depth", "(1.0, 0.5)", "least"]),
        ({"depth": (0.5, 1.5)}, ["depth", "1.5", "at most 1"]),
        ({"depth": (0.0, 1.0)}, ["depth", "above 0"]),
        ({"radius": 0.0}, ["radius", "0.0", "positive"]),
        ({"radius": float("nan")}, ["radius", "nan"]),
        ({"fov": 60.0}, ["fov", "60", "45"]),
        ({"fov": 0.0}, ["fov", "0", "45"]),
        ({"min_size": 289}, ["min_size", "289"]),
        ({"min_size": -1}, ["min_size", "-1"]),
        ({"min_objects": 2}, ["min_objects", "2", "1 objects"]),
        ({"min_objects": -1}, ["min_objects", "-1"]),
    ],
)
def test_impossible_settings_are_refused_with_what_is_possible(settings, allowed):
    with pytest.raises(ValueError) as error:
        World(**settings)
    assert all(part in str(error.value) for part in allowed), str(error.value)


def test_generation_that_accepts_nothing_stops_with_the_rate_it_saw():
    with pytest.raises(ValueError, match=r"0 of \d+ .*fixate-1.*250.*acceptance rate 0.*min_size"):
        generate(World("fixate-1", min_size=250), 10)


@pytest.mark.parametrize("n", [0, -3])
def test_no_frames_are_refused(n):
    with pytest.raises(ValueError, match=str(n)):
        generate(World("fixate-0"), n)
