"""Vision transformers from folders and hubs, against timm and transformers; and what is said when they can't be had."""

import json
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from pixel2gene.core.encoders import get_encoder
from pixel2gene.core.encoders.registry import REGISTRY
from pixel2gene.core.encoders.weights import state_sha256

CPU = torch.device("cpu")
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ([0.7, 0.6, 0.7], [0.2, 0.25, 0.2]))


def rgb(side, seed=0):
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.fixture
def folder(timm_folder):
    return timm_folder("mine", patch_size=16)


@pytest.mark.parametrize(
    ("arguments", "window"),
    [
        ({"patch_size": 16}, 224),
        ({"patch_size": 14, "reg_tokens": 4, "no_embed_class": True}, 224),
        ({"patch_size": 14, "gated": True, "mlp_ratio": 2.0, "init_values": 1e-5}, 224),
        ({"patch_size": 14, "img_size": 518}, 560),
        ({"patch_size": 16, "img_size": 64, "mpp": 0.25}, 64),
        ({"patch_size": 16, "img_size": 256, "mpp": 0.46}, 272),
    ],
)
def test_a_folder_gives_the_patch_tokens_of_timm_by_area(timm_folder, arguments, window):
    folder = timm_folder("mine", **arguments)
    encoder = get_encoder(folder, CPU)
    assert (encoder.name, encoder.channels, encoder.window) == ("mine", 24, window)
    image = rgb(window)
    found = encoder.encode_dense(image)

    arguments = {"img_size": 224, "embed_dim": 24, "depth": 2, "num_heads": 2, **arguments}
    arguments.pop("mpp", None)
    if arguments.pop("gated", False):
        arguments |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    network = timm.create_model("vit_base_patch16_224", num_classes=3, dynamic_img_size=True, **arguments).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.inference_mode():
        tokens = network.forward_intermediates(
            (image / 255 - MEAN) / STD, indices=1, norm=True, intermediates_only=True
        )
    pixels = F.interpolate(tokens[-1], scale_factor=arguments["patch_size"])
    torch.testing.assert_close(found, F.avg_pool2d(pixels, encoder.stride), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "arguments", "prefix", "window"),
    [
        ("ViT", {"patch_size": 16, "intermediate_size": 48}, 1, 224),
        ("ViT", {"patch_size": 16, "intermediate_size": 48, "mpp": 0.46}, 1, 272),
        ("ViT", {"patch_size": 16, "intermediate_size": 48, "head": "ForImageClassification"}, 1, 224),
        ("Dinov2", {"patch_size": 14, "use_swiglu_ffn": True}, 1, 224),
        ("Dinov2", {"patch_size": 14, "image_size": 518}, 1, 560),
        ("Dinov2WithRegisters", {"patch_size": 14, "num_register_tokens": 4}, 5, 224),
    ],
)
def test_a_folder_gives_the_patch_tokens_of_transformers_by_area(
    transformers_folder, capfd, kind, arguments, prefix, window
):
    folder = transformers_folder("mine", kind, **arguments)
    capfd.readouterr()
    encoder = get_encoder(folder, CPU)
    assert capfd.readouterr() == ("", "")
    assert (encoder.name, encoder.channels, encoder.window) == ("mine", 24, window)
    image = rgb(window)
    network = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()
    resized = {"interpolate_pos_encoding": True} if window == 272 else {}
    with torch.inference_mode():
        tokens = network((image / 255 - MEAN) / STD, **resized).last_hidden_state[:, prefix:]
    side = window // arguments["patch_size"]
    pixels = F.interpolate(tokens.mT.reshape(1, 24, side, side), scale_factor=arguments["patch_size"])
    torch.testing.assert_close(encoder.encode_dense(image), F.avg_pool2d(pixels, encoder.stride), rtol=1e-3, atol=1e-4)


def test_weights_of_transformers_are_the_same_in_parts_and_pickled(transformers_folder):
    folder = transformers_folder("mine", "Dinov2", patch_size=14)
    expected = get_encoder(folder, CPU).weights_sha256
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, folder / f"part-{i}.safetensors", {"format": "pt"})
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    assert get_encoder(folder, CPU).weights_sha256 == expected
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert get_encoder(folder, CPU).weights_sha256 == expected


def test_a_head_is_no_part_of_the_weights(transformers_folder):
    """That of the file, or one that is drawn because the file has none."""
    folder = transformers_folder("mine", "ViT", patch_size=16, intermediate_size=48)
    state = load_file(folder / "model.safetensors")
    assert any(name.startswith("pooler") for name in state)
    with_head = get_encoder(folder, CPU).weights_sha256
    rest = {name: value for name, value in state.items() if not name.startswith("pooler")}
    save_file(rest, folder / "model.safetensors", {"format": "pt"})
    assert {get_encoder(folder, CPU).weights_sha256 for _ in range(2)} == {with_head}


def test_weights_are_known_by_their_values(folder):
    state = load_file(folder / "model.safetensors")
    of_safetensors = get_encoder(folder, CPU).weights_sha256
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": state}, folder / "pytorch_model.bin")
    assert get_encoder(folder, CPU).weights_sha256 == of_safetensors
    state["blocks.1.mlp.fc2.bias"][3] += 1e-3
    torch.save(state, folder / "pytorch_model.bin")
    assert get_encoder(folder, CPU).weights_sha256 != of_safetensors


def test_a_hash_is_of_names_types_shapes_and_values():
    states = [
        {"a": torch.zeros(2, 3)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"a": torch.ones(2, 3)},
        {"a": torch.zeros(2, 3), "b": torch.tensor(1)},
    ]
    assert len({state_sha256(state) for state in states}) == len(states)
    assert state_sha256({"b": states[5]["b"], "a": states[5]["a"]}) == state_sha256(states[5])
    assert state_sha256({"a": torch.arange(6.0).view(2, 3).T}) == state_sha256(
        {"a": torch.arange(6.0).view(2, 3).T.clone()}
    )


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_licence_is_taken_from_the_configuration_or_the_model_page(folder):
    assert get_encoder(folder, CPU).licence == "not stated"
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\ntags: []\n---\n# A model\n")
    assert get_encoder(folder, CPU).licence == "cc-by-nc-nd-4.0"
    trained = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 224], "license": "mit"}
    change_config(folder, pretrained_cfg=trained)
    assert get_encoder(folder, CPU).licence == "mit"


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def half_the_weights(folder):
    state = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in state.items() if "blocks.1" not in key and "layer.1" not in key}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not weights")


def code(folder):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    no_weights(folder)
    torch.save({"state_dict": Evil()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_weights, "has no weights: model.safetensors or pytorch_model.bin expected"),
        (broken_config, "holds no vision transformer that timm or transformers can build"),
        (half_the_weights, r"weights and configuration differ in \['blocks.1"),
        (damaged_weights, "holds no vision transformer that timm can build"),
        (code, "holds no vision transformer that timm can build"),
        (lambda folder: change_config(folder, architecture="resnet18"), "holds no vision transformer"),
        (lambda folder: change_config(folder, architecture="no_such_net"), "Unknown model"),
        (
            lambda folder: (folder / "config.json").write_text("{}"),
            "'architecture' of timm nor a 'model_type'",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "its config.json is no object of JSON"),
    ],
)
def test_other_folders_are_refused(folder, capsys, change, message):
    refuse_folder(folder, change, message)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_weights, "has no weights: model.safetensors or pytorch_model.bin expected"),
        (half_the_weights, r"weights and configuration differ in \['encoder.layer.1"),
        (damaged_weights, "holds no vision transformer that transformers can build"),
        (code, "holds no vision transformer that transformers can build"),
        (lambda folder: change_config(folder, model_type="hibou"), "it knows no model_type 'hibou'"),
        (
            lambda folder: change_config(folder, auto_map={"AutoModel": "theirs.Net"}),
            "needs the code that comes",
        ),
        (lambda folder: change_config(folder, hidden_size=48), "weights and configuration differ in"),
        (lambda folder: change_config(folder, hidden_size="48"), "holds no vision transformer that transformers can"),
        (lambda folder: change_config(folder, num_attention_heads=0), "its config.json is wrong"),
        (lambda folder: change_config(folder, model_type="bert"), "holds no vision transformer"),
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            "preprocessor_config.json with 'image_mean' and 'image_std' is missing",
        ),
    ],
)
def test_other_folders_of_transformers_are_refused(transformers_folder, capsys, change, message):
    folder = transformers_folder("mine", "Dinov2", patch_size=14)
    capsys.readouterr()
    (folder / "theirs.py").write_text("print('run')")
    refuse_folder(folder, change, message)
    assert "run" not in capsys.readouterr().out


def refuse_folder(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        get_encoder(folder, CPU)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_what_is_missing_is_named(monkeypatch, folder):
    for package in ("lazyslide_models", "timm", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    for info in REGISTRY.values():
        if info.lazyslide is not None:
            with pytest.raises(
                ImportError, match=rf"'{info.name}' needs lazyslide-models: pip install 'pixel2gene\[fm\]'"
            ):
                get_encoder(info.name, CPU)
    with pytest.raises(ImportError, match=r"timm, which is not installed: pip install 'pixel2gene\[fm\]'"):
        get_encoder(folder, CPU)
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(ImportError, match=r"transformers, which is not installed: pip install 'pixel2gene\[fm\]'"):
        get_encoder(folder, CPU)


def refuse(error):
    def make():
        raise error

    return make


def wrapped(error):
    """As transformers passes it on."""
    try:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access.") from error
    except OSError as outer:
        return outer


GATED = GatedRepoError("401 Client Error.", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (GATED, PermissionError, f"are gated: ask for access at {REGISTRY['uni'].weights}, then log in with `hf auth"),
        (wrapped(GATED), PermissionError, "are gated: ask for access at"),
        (LocalEntryNotFoundError("no route"), ConnectionError, "where there is no network, pass encoder='path/to/f"),
        (ImportError("install conch"), ImportError, "Encoder 'uni' needs another package: install conch"),
    ],
)
def test_weights_that_cannot_be_had(monkeypatch, error, kind, message):
    registry = SimpleNamespace(MODEL_REGISTRY={"uni": refuse(error)})
    monkeypatch.setitem(sys.modules, "lazyslide_models", registry)
    with pytest.raises(kind, match=message) as caught:
        get_encoder("uni", CPU)
    assert "\n" not in str(caught.value)


def test_another_shape_than_known_is_refused(monkeypatch):
    network = torch.nn.Linear(1, 1)
    model = SimpleNamespace(
        model=network,
        get_transform=lambda: "normalise",
        encode_image_dense=lambda image: SimpleNamespace(patch_tokens=torch.zeros(len(image), 197, 1024)),
    )
    registry = SimpleNamespace(MODEL_REGISTRY={"uni": lambda: model})
    monkeypatch.setitem(sys.modules, "lazyslide_models", registry)
    with pytest.raises(
        ValueError, match=r"'uni' gave \(197, 1024\) tokens and channels for 224 px; \(196, 1024\) expec"
    ):
        get_encoder("uni", CPU).encode_dense(rgb(224))
