//! Files that an image's header names lie where the configuration allows.

use std::sync::Arc;

use tcmu_handler::{AllowedPaths, Config, ErrorKind, Handler as _, OpenRequest};

use crate::QcowHandler;

const SIZE: u64 = 1 << 20;

#[test]
fn a_header_leads_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    for name in ["secret", "inside/base"] {
        std::fs::write(folder.path().join(name), vec![7; SIZE as usize]).unwrap();
    }
    let request = |name: &str, options: &str, restricted: bool| {
        let image = inside.join(name);
        let mut config: Config = format!("{}{options}", image.display()).parse().unwrap();
        if restricted {
            let allowed = AllowedPaths::new([inside.clone()]);
            config.restrict(Arc::new(allowed)).unwrap();
        }
        OpenRequest {
            config,
            size: SIZE,
            block_size: 512,
        }
    };
    for (name, backing, good) in [("good", "base", true), ("bad", "../secret", false)] {
        let options = format!(";create=on;backing={backing};backing_format=raw");
        drop(QcowHandler.open(&request(name, &options, false)).unwrap());
        let restricted = request(name, "", true);
        let opened = QcowHandler.open(&restricted).map(drop);
        let checked = QcowHandler.check(&restricted.config);
        for result in [opened, checked] {
            match result {
                Ok(()) => assert!(good, "{name}"),
                Err(error) => {
                    assert!(!good, "{name}: {error}");
                    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_made_that_would_lead_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(folder.path().join("secret"), vec![7; SIZE as usize]).unwrap();
    let image = inside.join("new");
    let options = "create=on;backing=../secret;backing_format=raw";
    let mut config: Config = format!("{};{options}", image.display()).parse().unwrap();
    let allowed = AllowedPaths::new([inside.clone()]);
    config.restrict(Arc::new(allowed)).unwrap();
    let checked = QcowHandler.check(&config).unwrap_err();
    let request = OpenRequest {
        config,
        size: SIZE,
        block_size: 512,
    };
    let opened = QcowHandler.open(&request).map(drop).unwrap_err();
    for error in [checked, opened] {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    assert!(!image.exists());
}
