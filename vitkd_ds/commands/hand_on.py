"""The commands that hand a student on, as the command line calls them. The slow imports wait until they are called."""

from typing import Any


def export(source: str, destination: str, **options: Any) -> None:
    """Copy a student out of a run, or write it as a graph or for the Hugging Face hub.

    Usage: export RUN DST [--format timm|onnx|torch_export|hf] [--which last|best] [--half] [--val PATH]
    [--push USER/NAME], where RUN is a run folder, one of its checkpoints or an export, and DST a new folder. timm, the
    default, writes student.safetensors (a plain timm state dict) and student.json; onnx model.onnx and torch_export
    model.pt2, each with its preprocessing inside and compared with torch on 16 images of --val, which a run knows; hf a
    folder for timm.create_model("local-dir:DST", pretrained=True) with a model card, which --push uploads to a new
    private repository. --half stores fp16. Options come after the folders, as --half would take the next word for its
    value.
    """
    from vitkd_ds.commands.export import export as export_student

    print(export_student(source, destination, **options))


def predict(student: str, *images: str, **options: Any) -> None:
    """Say of images what a student sees: its likeliest classes with probabilities, or features where it has no classes.

    Usage: predict STUDENT IMAGE [IMAGE ...] [--top 5] [--features], where STUDENT is a run folder, a checkpoint or an
    exported student, and IMAGE a file, or a folder with images at any depth. Images are cut and normalised as in
    evaluation. With a folder, and for features, the output is CSV, with a line per image. --features asks a student
    with classes for its pooled features. Options come after the images, as --features would take the next word for its
    value.
    """
    from vitkd_ds.commands.predict import predict as predict_images

    for line in predict_images(student, images, **options):
        print(line)
