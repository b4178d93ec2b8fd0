"""Fake Dataset B, BUS-BRA, DDTI as masks, and plain folders."""

from intrasense_fast.data.fake._tree import Tree, in_colour, variant

# The numbers of malignant images in Dataset B, from the tables that came with its publications.
_MALIGNANT = {
    18,
    23,
    24,
    25,
    *range(27, 32),
    41,
    *range(43, 51),
    53,
    54,
    55,
    57,
    *range(132, 148),
    *range(295, 311),
}
_LAST_OF_FIRST_RANGE, _FIRST_OF_SECOND_RANGE, _IN_ALL = 147, 295, 163


def write_dataset_b(tree: Tree, count: int) -> None:
    """original/ and GT/ with numbers that have a gap, labels.csv and a spreadsheet beside it."""
    low = min(_LAST_OF_FIRST_RANGE, round(count * _LAST_OF_FIRST_RANGE / _IN_ALL))
    numbers = [
        *range(1, low + 1),
        *range(_FIRST_OF_SECOND_RANGE, _FIRST_OF_SECOND_RANGE + count - low),
    ]
    labels = {i: "malignant" if i in _MALIGNANT else "benign" for i in numbers}
    pictures = {i: tree.picture(labels[i]) for i in numbers}
    for source, target, kind in ((4, 5, "resized"), (6, 295, "cropped")):
        pictures[target] = variant(pictures[source], tree.rng, kind, "recompressed")
    for i, picture in pictures.items():
        tree.write(f"original/{i:06}.png", picture.image)
        tree.write(f"GT/{i:06}.png", picture.mask)
    tree.warning("original/000004.png", "near-duplicate of 000005: kept in one group")
    tree.warning("original/000006.png", "near-duplicate of 000295: kept in one group")
    tree.warning(
        "original/000006.png",
        "conflict: the same picture as 000295, but class benign here and malignant there",
    )
    tree.write("GT/000002.png", in_colour(pictures[2].mask))
    tree.write("GT/000003.png", in_colour(pictures[3].mask, alpha=True))
    tree.write("GT/000007.png", pictures[7].mask[:-2, 1:])
    tree.warning("GT/000007.png", "resized with nearest neighbour")
    tree.write("original/000008.png", in_colour(pictures[8].image))
    tree.table(
        "labels.csv", [("name", "label"), *((f"{i:06}", label) for i, label in labels.items())]
    )
    tree.write_bytes("DatasetB.xlsx", b"PK\x03\x04")
    if tree.broken:
        (tree.root / "GT/000010.png").unlink()
        tree.error("original/000010.png", "image without mask")
        tree.write("GT/000200.png", pictures[10].mask)
        tree.error("GT/000200.png", "mask without image")
        tree.truncate("original/000011.png")


def write_bus_bra(tree: Tree, count: int) -> None:
    """Images/ and Masks/ of patients with one to three images, the table of patients, and the
    official five folds."""
    rows: list[tuple[object, ...]] = [("ID", "Case", "Pathology", "BIRADS", "Side")]
    folds: list[tuple[object, ...]] = [("ID", "kFold")]
    case = 0
    while len(folds) <= count:
        case += 1
        label = ("benign", "benign", "malignant")[case % 3]
        for side in "lrs"[: min(1 + case % 3, count + 1 - len(folds))]:
            name = f"bus_{case:04}-{side}"
            picture = tree.picture(label)
            tree.write(f"Images/{name}.png", picture.image)
            tree.write(f"Masks/{name.replace('bus', 'mask')}.png", picture.mask)
            rows.append((name, case, label, 2 + case % 4, side))
            folds.append((name, 1 + case % 5))
    tree.table("5-fold-cv.csv", folds)
    if tree.broken:
        unlisted, unpaired = rows.pop(3)[0], rows[5][0]
        tree.error(f"Images/{unlisted}.png", "no patient or group in bus_data.csv")
        (tree.root / f"Masks/{str(unpaired).replace('bus', 'mask')}.png").unlink()
        tree.error(f"Images/{unpaired}.png", "image without mask")
        for absent in (unlisted, unpaired):
            tree.warning(".", f"names 1 images that are missing or cannot be used: {absent}")
        rows.append(("bus_9999-l", 9999, "benign", 2, "l"))
        tree.error("bus_data.csv", "lists bus_9999-l, but there is no such image")
    tree.table("bus_data.csv", rows)


def write_ddti_masks(tree: Tree, count: int) -> None:
    """Pairs of JPEG, N.a.jpg and N.b.jpg (the mask, with ringing), and label.txt."""
    for i in range(1, count + 1):
        picture = tree.picture()
        tree.write(f"{i}.a.jpg", in_colour(picture.image))
        tree.write(f"{i}.b.jpg", picture.mask)
    tree.write_bytes(
        "label.txt", "".join(f"{i}.a.jpg {i % 2}\n" for i in range(1, count + 1)).encode()
    )
    if tree.broken:
        (tree.root / "3.b.jpg").unlink()
        tree.error("3.a.jpg", "image without mask")
        tree.truncate("4.a.jpg")


def write_generic(tree: Tree, count: int) -> None:
    """images/ and masks/ of equal names, one image in twelve normal."""
    for i in range(1, count + 1):
        picture = tree.picture("normal" if i % 12 == 0 else ("benign", "malignant")[i % 2])
        tree.write(f"images/phantom_{i:04}.png", picture.image)
        tree.write(f"masks/phantom_{i:04}.png", picture.mask)
    if tree.broken:
        (tree.root / "masks/phantom_0003.png").rename(tree.root / "masks/phantom_003.png")
        tree.error(
            "images/phantom_0003.png", "image without mask; the nearest name is phantom_003.png"
        )
        tree.error(
            "masks/phantom_003.png", "mask without image; the nearest name is phantom_0003.png"
        )
        tree.truncate("images/phantom_0004.png")
