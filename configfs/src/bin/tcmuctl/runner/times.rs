//! Figures out of a histogram of times.

/// How many commands took less than so many nanoseconds, and not less than the limit before.
pub(super) type Times = Vec<(u64, u64)>;

/// Adds the counts of another histogram of the same limits.
pub(super) fn merge(times: &mut Times, others: &[(u64, u64)]) {
    for &(limit, count) in others {
        match times.binary_search_by_key(&limit, |(limit, _)| *limit) {
            Ok(place) => times[place].1 += count,
            Err(place) => times.insert(place, (limit, count)),
        }
    }
}

/// What has been counted since `before`.
pub(super) fn since(now: &[(u64, u64)], before: &[(u64, u64)]) -> Times {
    let earlier = |limit: u64| {
        let place = before.binary_search_by_key(&limit, |(limit, _)| *limit);
        place.map_or(0, |place| before[place].1)
    };
    let times = now
        .iter()
        .map(|&(limit, count)| (limit, count.saturating_sub(earlier(limit))));
    times.filter(|(_, count)| *count > 0).collect()
}

/// So many nanoseconds, or less, is what this share of the commands took; `None` without commands.
pub(super) fn quantile(times: &[(u64, u64)], share: f64) -> Option<u64> {
    let all: u64 = times.iter().map(|(_, count)| count).sum();
    let wanted = (all as f64 * share).ceil() as u64;
    let mut below = 0;
    times.iter().find_map(|&(limit, count)| {
        below += count;
        (below >= wanted.max(1)).then_some(limit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_limits_of_buckets() {
        let times = [(100, 50), (200, 49), (1000, 1)];
        for (share, expected) in [
            (0.0, 100),
            (0.5, 100),
            (0.51, 200),
            (0.99, 200),
            (0.999, 1000),
            (1.0, 1000),
        ] {
            assert_eq!(quantile(&times, share), Some(expected), "{share}");
        }
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[(7, 1)], 0.5), Some(7));
    }

    #[test]
    fn histograms_are_added_and_subtracted() {
        let mut times = vec![(100, 1), (300, 2)];
        merge(&mut times, &[(50, 4), (100, 1), (200, 3)]);
        assert_eq!(times, [(50, 4), (100, 2), (200, 3), (300, 2)]);
        let before = [(50, 4), (100, 1), (300, 2)];
        assert_eq!(since(&times, &before), [(100, 1), (200, 3)]);
    }
}
