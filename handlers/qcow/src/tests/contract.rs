//! What every backstore must obey.

use std::path::Path;

use tcmu_handler::Backstore;
use tcmu_handler::contract_tests;
use tcmu_handler::testing::{Contract, block_on, io};

use super::{config, open};
use crate::QcowHandler;

/// New images that are made with these options.
fn made_with(options: &'static str) -> Contract<QcowHandler> {
    const SIZE: u64 = 4 << 20;
    let make = move |folder: &Path| {
        let path = folder.join("a.qcow2");
        let image = open(&path, &format!(";create=on{options}"), SIZE).unwrap();
        block_on(image.close(&io())).unwrap();
        config(&path, "")
    };
    Contract::new(QcowHandler, make)
        .size(SIZE)
        .read_only(";readonly=on")
}

contract_tests!(plain: made_with(""));
contract_tests!(small_clusters: made_with(";cluster_size=4k"));
contract_tests!(subclusters: made_with(";extended_l2=on;cluster_size=16k"));
contract_tests!(preallocated: made_with(";preallocation=full"));
