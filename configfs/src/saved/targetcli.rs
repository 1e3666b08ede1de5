//! Reading what targetcli has saved (`saveconfig.json` of rtslib-fb).
//!
//! Its format has no version and no specification: what is known by name is taken, and everything
//! else that says something is named as left out.

use serde_json::{Map, Value};

use super::{
    Acl, Attributes, Backstore, Group, Lun, MappedLun, PortGroup, Step, Taken, Target, port_groups,
};

type Object = Map<String, Value>;

/// What rtslib calls the files of `auth`.
const AUTH: [(&str, &str); 4] = [
    ("chap_userid", "userid"),
    ("chap_password", "password"),
    ("chap_mutual_userid", "userid_mutual"),
    ("chap_mutual_password", "password_mutual"),
];

/// Attributes that `capture` does not save either: see there.
const NOT_TAKEN: [&str; 4] = [
    "dev_config",
    "dev_size",
    "tmr_notification",
    "nl_reply_supported",
];

/// Understands a whole file.
pub(super) fn understand(config: &Value) -> Taken {
    let mut taken = Taken::default();
    let Some(config) = config.as_object() else {
        return taken;
    };
    for object in objects(config, "storage_objects") {
        let (plugin, name) = (text(object, "plugin"), text(object, "name"));
        let skipped = |why: String| Step::skipped("backstore", &name, why);
        if plugin != "user" {
            let why = format!("it is of the kernel's own kind {plugin:?}: targetcli restores it");
            taken.left_out.push(skipped(why));
            continue;
        }
        match backstore(object) {
            Ok((backstore, notes)) => {
                taken.left_out.extend(notes.into_iter().map(skipped));
                taken.saved.backstores.push(backstore);
            }
            Err(why) => taken.left_out.push(skipped(why)),
        }
    }
    for object in objects(config, "targets") {
        target(object, &mut taken);
    }
    for object in objects(config, "fabric_modules") {
        let name = format!("{}/discovery_auth", text(object, "name"));
        let why = "tcmuctl does not restore the CHAP names of discovery";
        taken.left_out.push(Step::skipped("target", &name, why));
    }
    taken
}

/// A backstore, and what of it is left out.
fn backstore(object: &Object) -> Result<(Backstore, Vec<String>), String> {
    let mut notes = Vec::new();
    let config = text(object, "config");
    let (handler, config) = config
        .split_once('/')
        .ok_or_else(|| format!("its config {config:?} names no handler"))?;
    let size = object.get("size").and_then(Value::as_u64);
    let mut backstore = Backstore {
        name: text(object, "name"),
        handler: handler.to_owned(),
        config: config.to_owned(),
        size: size.ok_or("it has no size")?,
        max_sectors: number(object, "hw_max_sectors"),
        serial: Some(text(object, "wwn")).filter(|serial| !serial.is_empty()),
        attributes: attributes(object.get("attributes")),
        ..Backstore::default()
    };
    backstore
        .attributes
        .retain(|name, _| !NOT_TAKEN.contains(&name.as_str()));
    for pair in text(object, "control").split(',').filter(|s| !s.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let field = match key.trim() {
            "max_data_area_mb" => &mut backstore.data_area_mb,
            "hw_block_size" => &mut backstore.block_size,
            "data_pages_per_blk" => &mut backstore.pages_per_block,
            "cmd_ring_size_mb" => &mut backstore.ring_mb,
            "hw_max_sectors" => &mut backstore.max_sectors,
            _ => {
                notes.push(format!("its setting {pair} is not known"));
                continue;
            }
        };
        match value.trim().parse() {
            Ok(value) => *field = Some(value),
            Err(_) => notes.push(format!("its setting {pair} is not known")),
        }
    }
    for group in objects(object, "alua_tpgs") {
        backstore.port_groups.push(PortGroup {
            name: text(group, "name"),
            id: number(group, "tg_pt_gp_id"),
            attributes: group
                .iter()
                .filter_map(|(name, value)| port_groups::from_targetcli(name, &show(value)?))
                .collect(),
        });
    }
    Ok((backstore, notes))
}

fn target(object: &Object, taken: &mut Taken) {
    let (fabric, name) = (text(object, "fabric"), text(object, "wwn"));
    let whole = format!("{fabric}/{name}");
    let mut left_out = Vec::new();
    let mut skip = |kind, name: &str, why: &str| left_out.push(Step::skipped(kind, name, why));
    let mut target = Target {
        fabric,
        name,
        ..Target::default()
    };
    let (mut ours, mut others) = (0, 0);
    for object in objects(object, "tpgs") {
        let tag = number(object, "tag").unwrap_or(1);
        let below = |rest: &str| format!("{whole}/{tag}/{rest}");
        let mut group = Group {
            tag,
            enabled: object.get("enable").is_none_or(is_on),
            attributes: attributes(object.get("attributes")),
            parameters: attributes(object.get("parameters")),
            authentication: authentication(object),
            ..Group::default()
        };
        for lun in objects(object, "luns") {
            let Some(index) = number(lun, "index") else {
                skip("lun", &below("?"), "it has no index");
                continue;
            };
            let backstore = text(lun, "storage_object");
            let Some(backstore) = backstore.strip_prefix("/backstores/user/") else {
                skip(
                    "lun",
                    &below(&format!("lun_{index}")),
                    "it is not of a user backstore",
                );
                others += 1;
                continue;
            };
            ours += 1;
            group.luns.push(Lun {
                lun: index,
                backstore: backstore.to_owned(),
                hba: None,
                port_group: Some(text(lun, "alua_tg_pt_gp_name")).filter(|name| !name.is_empty()),
            });
        }
        for portal in objects(object, "portals") {
            let address = text(portal, "ip_address");
            let port: Option<u16> = number(portal, "port");
            let portal_name = format!("{address}:{}", port.unwrap_or(crate::ISCSI_PORT));
            for offload in ["iser", "offload"] {
                if portal.get(offload).is_some_and(is_on) {
                    let why = format!("tcmuctl does not restore `{offload}`: it listens over TCP");
                    skip("portal", &below(&portal_name), &why);
                }
            }
            group.portals.push(portal_name);
        }
        for acl in objects(object, "node_acls") {
            group.acls.push(initiator(acl, &group.luns));
        }
        target.groups.push(group);
    }
    if ours == 0 && others > 0 {
        // One line says it for all its LUNs.
        left_out.clear();
        let why = "none of its LUNs is of a user backstore: targetcli restores it";
        left_out.push(Step::skipped("target", &whole, why));
    } else {
        taken.saved.targets.push(target);
    }
    taken.left_out.append(&mut left_out);
}

fn initiator(object: &Object, luns: &[Lun]) -> Acl {
    let mapped = objects(object, "mapped_luns")
        .filter_map(|mapped| {
            Some(MappedLun {
                lun: number(mapped, "index")?,
                target_lun: number(mapped, "tpg_lun")?,
                read_only: mapped.get("write_protect").is_some_and(is_on),
            })
        })
        .filter(|mapped| luns.iter().any(|lun| lun.lun == mapped.target_lun));
    Acl {
        initiator: text(object, "node_wwn"),
        queue_depth: None,
        attributes: attributes(object.get("attributes")),
        authentication: authentication(object),
        luns: mapped.collect(),
    }
}

/// The objects of a list.
fn objects<'a>(object: &'a Object, list: &str) -> impl Iterator<Item = &'a Object> + use<'a> {
    let list = object.get(list).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

fn text(object: &Object, key: &str) -> String {
    let text = object.get(key).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

fn number<T: TryFrom<u64>>(object: &Object, key: &str) -> Option<T> {
    T::try_from(object.get(key)?.as_u64()?).ok()
}

/// rtslib writes true or false, and 1 or 0.
fn is_on(value: &Value) -> bool {
    value.as_bool().or(value.as_u64().map(|n| n != 0)) == Some(true)
}

/// A value as its file has it; nothing for what no file holds.
fn show(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(u8::from(*flag).to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn attributes(value: Option<&Value>) -> Attributes {
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), show(value)?)))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

fn authentication(object: &Object) -> Attributes {
    AUTH.iter()
        .map(|(theirs, name)| ((*name).to_owned(), text(object, theirs)))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Outcome;
    use super::*;

    fn attributes_of(pairs: &[(&str, &str)]) -> Attributes {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn backstores_and_targets_are_taken() {
        let taken = understand(&json!({
            "storage_objects": [
                {
                    "plugin": "user", "name": "a", "config": "file//srv/a;b.img", "size": 4096,
                    "wwn": "S1", "hw_max_sectors": 128,
                    "control": "max_data_area_mb=64,hw_block_size=512,data_pages_per_blk=2",
                    "attributes": {"cmd_time_out": 30, "emulate_write_cache": 0, "dev_size": 4096},
                    "alua_tpgs": [{
                        "name": "g", "tg_pt_gp_id": 3, "alua_access_type": 3,
                        "alua_access_state": 1, "alua_access_status": 0, "members": "x",
                    }],
                },
                {"plugin": "fileio", "name": "theirs", "dev": "/x", "size": 4096},
                {"plugin": "user", "name": "broken", "config": "file", "size": 4096},
            ],
            "targets": [
                {
                    "fabric": "iscsi", "wwn": "iqn.2026-11.com.example:a",
                    "tpgs": [{
                        "tag": 2, "enable": false,
                        "attributes": {"authentication": 1}, "parameters": {"AuthMethod": "CHAP"},
                        "chap_userid": "u", "chap_mutual_password": "p",
                        "luns": [
                            {"index": 5, "storage_object": "/backstores/user/a", "alias": "x",
                             "alua_tg_pt_gp_name": "g"},
                            {"index": 6, "storage_object": "/backstores/fileio/theirs"},
                        ],
                        "portals": [{"ip_address": "[::1]", "port": 3261, "iser": true,
                                     "offload": false}],
                        "node_acls": [{
                            "node_wwn": "iqn.2026-11.com.example:host", "chap_password": "q",
                            "mapped_luns": [
                                {"index": 0, "tpg_lun": 5, "write_protect": true},
                                {"index": 1, "tpg_lun": 6, "write_protect": false},
                            ],
                        }],
                    }],
                },
                {
                    "fabric": "loopback", "wwn": "naa.1",
                    "tpgs": [{"luns": [{"index": 0,
                                        "storage_object": "/backstores/fileio/theirs"}]}],
                },
            ],
            "fabric_modules": [{"name": "iscsi", "discovery_enable_auth": true}],
        }));
        let backstore = Backstore {
            name: "a".to_owned(),
            handler: "file".to_owned(),
            config: "/srv/a;b.img".to_owned(),
            size: 4096,
            block_size: Some(512),
            max_sectors: Some(128),
            data_area_mb: Some(64),
            pages_per_block: Some(2),
            serial: Some("S1".to_owned()),
            attributes: attributes_of(&[("cmd_time_out", "30"), ("emulate_write_cache", "0")]),
            port_groups: vec![PortGroup {
                name: "g".to_owned(),
                id: Some(3),
                attributes: attributes_of(&[
                    ("alua_access_state", "1"),
                    ("alua_access_type", "Implicit and Explicit"),
                ]),
            }],
            ..Backstore::default()
        };
        assert_eq!(taken.saved.backstores, [backstore]);
        let group = Group {
            tag: 2,
            enabled: false,
            attributes: attributes_of(&[("authentication", "1")]),
            parameters: attributes_of(&[("AuthMethod", "CHAP")]),
            authentication: attributes_of(&[("userid", "u"), ("password_mutual", "p")]),
            portals: vec!["[::1]:3261".to_owned()],
            luns: vec![Lun {
                lun: 5,
                backstore: "a".to_owned(),
                hba: None,
                port_group: Some("g".to_owned()),
            }],
            acls: vec![Acl {
                initiator: "iqn.2026-11.com.example:host".to_owned(),
                authentication: attributes_of(&[("password", "q")]),
                luns: vec![MappedLun {
                    lun: 0,
                    target_lun: 5,
                    read_only: true,
                }],
                ..Acl::default()
            }],
            ..Group::default()
        };
        assert_eq!(taken.saved.targets.len(), 1);
        assert_eq!(taken.saved.targets[0].groups, [group]);
        let left_out: Vec<_> = taken
            .left_out
            .iter()
            .map(|step| {
                assert_eq!(step.outcome, Outcome::Skipped);
                (step.kind, step.name.as_str())
            })
            .collect();
        assert_eq!(
            left_out,
            [
                ("backstore", "theirs"),
                ("backstore", "broken"),
                ("lun", "iscsi/iqn.2026-11.com.example:a/2/lun_6"),
                ("portal", "iscsi/iqn.2026-11.com.example:a/2/[::1]:3261"),
                ("target", "loopback/naa.1"),
                ("target", "iscsi/discovery_auth"),
            ]
        );
    }

    #[test]
    fn nonsense_is_no_reason_to_panic() {
        for config in [
            json!({"storage_objects": 1}),
            json!({"storage_objects": [1, null, {}], "targets": [{"tpgs": [{"luns": [{}]}]}, 7]}),
            json!({"storage_objects": [{"plugin": "user", "size": -1, "config": "a/b"}]}),
        ] {
            assert!(understand(&config).saved.backstores.is_empty());
        }
    }
}
