use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

fn parse(words: &str) -> Cli {
    match Cli::try_parse_from(["vmferry"].into_iter().chain(words.split_whitespace())) {
        Ok(cli) => cli,
        Err(error) => panic!("{words}: {error}"),
    }
}

fn refused(words: &str) -> String {
    Cli::try_parse_from(["vmferry"].into_iter().chain(words.split_whitespace()))
        .unwrap_err()
        .to_string()
}

fn create(words: &str) -> CreateArgs {
    match parse(words).command {
        Command::Vm(VmCommand::Create(args)) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_service_can_be_named_anywhere() {
    let b = Address::Https("https://b:7070".to_owned());
    for words in [
        "--host https://b:7070 vm list",
        "vm --host https://b:7070/ list",
        "vm list --host https://b:7070",
        "host drain --to c --host https://b:7070",
    ] {
        assert_eq!(parse(words).connect.host, b, "{words}");
    }
    let json = parse("migrations list --json");
    assert!(json.connect.json && json.connect.cert.is_none());
    for (bad, said) in [
        ("http://b", "unix:PATH"),
        ("unix:", "unix:PATH"),
        ("https://", "https://HOST:PORT"),
        ("https://b/v1", "the host and the port only"),
        ("https://user@b", "the host and the port only"),
    ] {
        assert!(
            refused(&format!("vm list --host {bad}")).contains(said),
            "{bad}"
        );
    }
}

#[test]
fn a_machine_is_made_from_options_or_from_a_file() {
    let args = create(
        "vm create web-1 --ram 512M --vcpus 2 --kernel k --cmdline x --disk \
         nbd://s:10809/a,b,ro,serial=root,queues=2 --disk file:/d,delay-ms=5 -q",
    );
    assert_eq!((args.name.as_deref(), args.ram), (Some("web-1"), Some(512)));
    assert!(args.quiet);
    let [root, data] = &args.disk[..] else {
        panic!("{:?}", args.disk)
    };
    assert_eq!(root.source.to_string(), "nbd://s:10809/a,b");
    assert!(root.read_only && root.serial == "root" && root.queues == Some(2));
    assert_eq!(
        (data.source.to_string(), data.delay_ms),
        ("file:/d".to_owned(), 5)
    );
    assert_eq!(
        create("vm create -f s.toml web-2").name.as_deref(),
        Some("web-2")
    );
    for (bad, said) in [
        ("", "--ram"),
        ("web-1", "--ram"),
        ("--ram 4G", "NAME"),
        ("web-1 --file f --ram 4G", "cannot be used"),
        ("web-1 --file f --disk file:/d", "cannot be used"),
        ("Web --ram 4G", "lower-case"),
        ("web-1 --ram 3M", "multiple of 2 MiB"),
        ("web-1 --ram 4G --initrd i", "--kernel"),
        ("web-1 --ram 4G --disk d.img", "file:PATH"),
        ("web-1 --ram 4G --disk file:/d,queues=many", "no number"),
        (
            "web-1 --ram 4G --disk file:/d,serial=123456789012345678901",
            "longer than 20",
        ),
        ("web-1 --ram 4G --workload w --kernel k", "cannot be used"),
    ] {
        let error = refused(&format!("vm create {bad}"));
        assert!(error.contains(said), "{bad}: {error}");
    }
}

#[test]
fn how_a_machine_moves_is_what_was_said_and_nothing_else() {
    let how = |words: &str| match parse(&format!("migrate web-1 --to b {words}")).command {
        Command::Migrate(args) => args.how.options(),
        other => panic!("{other:?}"),
    };
    assert_eq!(how(""), MigrationOptions::default());
    let said = how(
        "--transport tcp --streams 4 --codec zstd:3 --delta-cache-mib 8 --tracker wp-group --group 2m --throttle 40 \
         --link-mbit 1000 --max-blackout 0.3s --min-passes 2",
    );
    let expected = MigrationOptions {
        transport: Some("tcp".to_owned()),
        streams: Some(4),
        codec: Some("zstd:3".to_owned()),
        delta_cache_mib: Some(8),
        tracker: Some("wp-group".to_owned()),
        group: Some("2m".to_owned()),
        throttle_pct: Some(40),
        link_mbit: Some(1000),
        max_blackout_ms: Some(300.0),
        min_passes: Some(2),
    };
    assert_eq!(said, expected);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (bad, said) in [
        ("migrate web-1", "--to"),
        ("migrate web-1 --to b --dry-run --wait", "cannot be used"),
        ("migrate web-1 --to b --codec rar", "zstd"),
        ("host drain", "--to"),
        ("host drain --cancel --to b", "cannot be used"),
        ("host drain --cancel --show", "cannot be used"),
        ("host drain --to b --parallel 0", "1..=64"),
        ("vm settle-storage web-1", "--nobody-else-writes"),
        ("vm decide web-1 --certain", "--here"),
        ("vm decide web-1 --here --elsewhere", "cannot be used"),
        ("migrations show xyz", "hexadecimal"),
        ("migrations trace 0a --format zipkin", "jaeger"),
        ("vm console web-1 --tail 2M", "1 to 1M"),
    ] {
        let error = refused(bad);
        assert!(error.contains(said), "{bad}: {error}");
    }
}
