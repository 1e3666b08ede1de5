//! Layers over files and memory.

mod behaviour;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use tcmu_handler::testing::Contract;
use tcmu_handler::{Config, Handler, OpenRequest, Result};
use tcmu_handler_file::FileHandler;
use tcmu_handler_ram::RamHandler;

use crate::{AnyBackstore, Handlers, Layer};

const SIZE: u64 = 4 << 20;

/// The handlers `file` and `ram`, and all layers.
fn handlers() -> Arc<Handlers> {
    let handlers = Arc::new(Handlers::new());
    handlers.add(Arc::new(FileHandler));
    handlers.add(Arc::new(RamHandler));
    for layer in Layer::all(&handlers) {
        handlers.add(Arc::new(layer));
    }
    handlers
}

/// One of the layers, with what it lies over.
struct Stack {
    layer: Layer,
    _handlers: Arc<Handlers>,
}

impl Stack {
    fn new(subtype: &str) -> Self {
        let handlers = handlers();
        let layer = Layer::all(&handlers).find(|layer| layer.subtype() == subtype);
        Self {
            layer: layer.unwrap(),
            _handlers: handlers,
        }
    }
}

impl Handler for Stack {
    type Backstore = AnyBackstore;

    fn subtype(&self) -> &str {
        self.layer.subtype()
    }

    fn help(&self) -> &str {
        self.layer.help()
    }

    fn check(&self, config: &Config) -> Result<()> {
        self.layer.check(config)
    }

    fn open(&self, request: &OpenRequest) -> Result<AnyBackstore> {
        self.layer.open(request)
    }
}

/// The contract of layers (`subtype/.../`) over a file.
fn over_a_file(layers: &'static str, behind: &'static str) -> Contract<Stack> {
    let (subtype, rest) = layers.split_once('/').unwrap();
    let make = move |folder: &Path| {
        for name in ["image", "mirror"] {
            let file = File::create(folder.join(name));
            file.and_then(|file| file.set_len(SIZE)).unwrap();
        }
        let folder = folder.display();
        format!(
            "{rest}file/{folder}/image{}",
            behind.replace("FOLDER", &folder.to_string())
        )
    };
    Contract::new(Stack::new(subtype), make).size(SIZE)
}

tcmu_handler::contract_tests!(gates: over_a_file(
    "delay/us=1/op=write/throttle/iops=1000000/log/fault/nth=1000000000/",
    ""
).read_only(";readonly=on"));
tcmu_handler::contract_tests!(verify: over_a_file("verify/", ";mirror=file/FOLDER/mirror"));
tcmu_handler::contract_tests!(volatile: over_a_file("volatile/close=keep/limit=512k/", "")
    .read_only(";readonly=on"));
