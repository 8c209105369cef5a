"""The public files behind the data sets that are fetched: where they live and their SHA-256."""

from zoo.data.fetch import Source

__all__ = ["MNIST", "OLSHAUSEN", "OMNIGLOT", "VAN_HATEREN"]

_VAN_HATEREN_HOME = ("https://raw.githubusercontent.com/Rieke-Lab/turner-package/08eb7a0a138350e5e1dbedc67b1bbd48d76f289d/%2Bedu/"
                     "%2Bwashington/%2Briekelab/%2Bturner/%2Brescource/VHsubsample_20160105/")
_OLSHAUSEN_HOME = "https://raw.githubusercontent.com/shaoguangcheng/CDBN/f85fe014b72d6727b3ab9764222d3c67fbbd6d0f/matlab_new/data/"
_MNIST_HOMES = ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/")

_VAN_HATEREN_SUMS = {
    "imk00152.iml": "4c70cbe8dab467c1f820a61efa2496d8dae15b41a892591d0c9e7e230f9b825a",
    "imk00377.iml": "c53831290f70c619bf52f08c62dc085a638c9804b69f3d8af92bc392daaec3ba",
    "imk00405.iml": "d9a7e92f6087cdf7b1db55d7f6b250c760608e55ef020a999d43b7b095808122",
    "imk00459.iml": "c3ba1b9e67d62d7011aeb8ad7b92081b50e5f2038600460d7b5c34656323dd54",
    "imk00657.iml": "46180fc8fba8328e523b4907ed4babddd01d4fc3971a8fcc92e673934c85890d",
    "imk01151.iml": "2012351ad8ba8a931c7d207ed33b8deed592c1ae995c314d019b1cd899d38f1d",
    "imk01154.iml": "f5d8f3c4fe61ac142e3d1f3396abcd2ce6a0b9ed8d54ee00fe6eb484d5b06927",
    "imk01192.iml": "117fe280dbc27a1971c6111a60da04baf3b0878ad91adde7978a3ed79a0959af",
    "imk01769.iml": "f29059744f67f85131c82b252c5b1831c8a0cd30b53b933f44438a532ad5128c",
    "imk01829.iml": "9ca07b1c0121880cd6185fbe0d28b2ba93e6d5fe09dafcf72c145a6842c888d0",
    "imk02265.iml": "6a6aafc0aa29fd67d3aa3eaac3a3bf806f910e5c1f6f2eadd283e4401f7c9998",
    "imk02281.iml": "3e3c067943020582a09c74944f32fd7db50244b8c30fa75b0ba02ad87bb10354",
    "imk02733.iml": "c202c22e8f1fe03358f7632cd3a3e20a6bca2cb469a7155a39ef9eb8094d0fd9",
    "imk02999.iml": "a4b571964f07b0b39343bd2df3e51356137bcb0cd5993032432ba2b007a48fc0",
    "imk03093.iml": "5d295e21031910f61e2518f4a2eaa79dc9a6e305beb76f0f2d4cf91a464de9d8",
    "imk03347.iml": "88fa2368b738d50efc86a1d1ab0f48a6f823e64eb2932a460adc23f0f5ddf1aa",
}
_OLSHAUSEN_SUMS = {
    "01": "ea5d8b5dab975faa7fa3b2c7bb0bfd6352ae65643c0e7a4e3fca8ccb07ef0a03",
    "02": "5012417d7cbed3e27ab29ae7a3bd612e6301bb06342b19079152248b9c5cf311",
    "03": "7607d4f660708b4bd1ec330a80794de0a83b4a9872f1fd14892a46e7ba85e78e",
    "04": "8d5b22c1e25450405ff07c20a9989cab00108816e2b3b55c4c9ec206c9fe5494",
    "05": "a1c5b30e50909389e4eec781db4d246dc5d6bf79c57444e0f7319f47f73d0fde",
    "06": "6b261e37de86330fdc5658a3fb11d80e9bcd06026f28dcc3cc6908b65c00a252",
    "07": "fdce9bdfcd74bfbece11915f93b34b6698d572abdae7954faf495b8c844f8def",
    "08": "b5fd99f30238d9b52139fb3ba57474fda23395ef80665ea8d0dce44b8483b158",
    "09": "3e931e925d32260c7cf8b59f4a57cdaf3fee08c3db6fa3bf154078f4cdbebd36",
    "10": "05670b55de8d3ea3440704c980043b1bb6404556b4acfc325241ac407f124d01",
}
_MNIST_SUMS = {
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
}

VAN_HATEREN = [Source(f"van_hateren/{name}", sha256, (_VAN_HATEREN_HOME + name,)) for name, sha256 in _VAN_HATEREN_SUMS.items()]
OLSHAUSEN = [Source(f"olshausen/raw_{number}.tif", sha256, (f"{_OLSHAUSEN_HOME}{number}.tif",))
             for number, sha256 in _OLSHAUSEN_SUMS.items()]
MNIST = {name.split("-idx")[0]: Source(f"mnist/{name}", sha256, tuple(home + name for home in _MNIST_HOMES))
         for name, sha256 in _MNIST_SUMS.items()}
OMNIGLOT = Source(
    "omniglot/images_background_small1.zip", "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    ("https://raw.githubusercontent.com/brendenlake/omniglot/master/python/images_background_small1.zip",))
