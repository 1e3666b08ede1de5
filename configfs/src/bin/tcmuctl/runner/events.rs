//! `tcmuctl events`.

use std::io::{self, Write};

use clap::Args;
use futures_util::{Stream, StreamExt, stream};
use zbus::{Connection, MatchRule, Message, MessageStream, block_on};

use super::client::{Client, Event, INTERFACE, NAME};
use super::error::Error;
use super::text;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Go on with those that come, until this is interrupted
    ///
    /// Daemons may come and go meanwhile.
    #[arg(long, short)]
    follow: bool,

    /// Only events after the one of this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,

    /// Only events of the LUN of this name
    #[arg(long, value_name = "NAME")]
    lun: Option<String>,
}

pub(super) fn run(client: &Client, arguments: &Arguments, as_json: bool) -> Result<(), Error> {
    block_on(async {
        // Before looking, so that none comes in between unnoticed.
        let news = match arguments.follow {
            true => Some(news().await?),
            false => None,
        };
        let mut shown = arguments.after;
        show(client, &mut shown, arguments, as_json).await?;
        let Some(mut news) = news else {
            return Ok(());
        };
        while let Some(message) = news.next().await {
            let message = message?;
            if let Ok((_, _, owner)) = message.body().deserialize::<(&str, &str, &str)>() {
                // Each daemon counts its own.
                shown = 0;
                if owner.is_empty() {
                    let _ = writeln!(io::stderr(), "tcmuctl: the daemon has gone");
                    continue;
                }
            }
            match show(client, &mut shown, arguments, as_json).await {
                Ok(()) | Err(Error::NoDaemon(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Bus("the bus has gone".to_owned()))
    })
}

/// Hears when there is an event, and when daemons come and go. What is not heard at once waits on a
/// connection of its own, where it is in no answer's way.
async fn news() -> Result<impl Stream<Item = zbus::Result<Message>> + Unpin, Error> {
    let connection = Connection::system().await?;
    let events = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender(NAME)
        .interface(INTERFACE)
        .member("Event")
        .build()?;
    let owners = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .member("NameOwnerChanged")
        .arg(0, NAME)
        .build()?;
    let events = MessageStream::for_match_rule(events, &connection, None).await?;
    let owners = MessageStream::for_match_rule(owners, &connection, None).await?;
    Ok(stream::select(events, owners))
}

/// Prints the events after the one numbered `shown`, and notes the last.
async fn show(
    client: &Client,
    shown: &mut u64,
    arguments: &Arguments,
    as_json: bool,
) -> Result<(), Error> {
    loop {
        let (events, latest) = client.events_after(*shown).await?;
        let Some(last) = events.last() else {
            return Ok(());
        };
        *shown = last.sequence;
        let mut out = io::stdout().lock();
        let is_wanted = |event: &&Event| arguments.lun.as_ref().is_none_or(|lun| event.lun == *lun);
        for event in events.iter().filter(is_wanted) {
            if as_json {
                // One line each, for programs that follow.
                serde_json::to_writer(&mut out, event).map_err(io::Error::from)?;
                writeln!(out)?;
            } else {
                writeln!(out, "{}", line(event))?;
            }
        }
        out.flush()?;
        if *shown >= latest {
            return Ok(());
        }
    }
}

fn line(event: &Event) -> String {
    let mut line = format!(
        "{} {:>5} {:<14}",
        text::moment(event.time),
        event.sequence,
        event.kind
    );
    for part in [&event.lun, &event.message] {
        if !part.is_empty() {
            line += &format!(" {part}");
        }
    }
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let mut event = Event {
            sequence: 12,
            time: 0,
            kind: "failed".to_owned(),
            lun: "disk0".to_owned(),
            message: "no such file".to_owned(),
        };
        assert_eq!(
            line(&event),
            "1970-01-01T00:00:00.000Z    12 failed         disk0 no such file"
        );
        event.lun.clear();
        event.message.clear();
        assert_eq!(line(&event), "1970-01-01T00:00:00.000Z    12 failed");
    }
}
