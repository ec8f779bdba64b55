//! `{n}`, the number of a VM, in what is asked for several.

/// `text` for the VM number `n`: `{n}` is that, `{n+9}` and `{n-1}` count from there.
pub(crate) fn expand(text: &str, n: u32) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("{n") {
        let inside = &rest[start + 2..];
        let Some((sum, behind)) = inside.split_once('}') else { break };
        expanded += &rest[..start];
        expanded += &number(sum, n).map_err(|why| format!("`{{n{sum}}}`: {why}"))?.to_string();
        rest = behind;
    }
    Ok(expanded + rest)
}

fn number(sum: &str, n: u32) -> Result<u32, &'static str> {
    let digits = |text: &str| {
        let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|_| all).ok_or("write {n}, {n+NUMBER} or {n-NUMBER}")
    };
    match (sum.as_bytes().first(), sum.get(1..)) {
        (None, _) => Ok(n),
        (Some(b'+'), Some(text)) => n.checked_add(digits(text)?).ok_or("it is too large"),
        (Some(b'-'), Some(text)) => n.checked_sub(digits(text)?).ok_or("it is below 0"),
        _ => Err("write {n}, {n+NUMBER} or {n-NUMBER}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_put_in_their_places() {
        for (text, expected) in [
            ("web", "web"),
            ("web{n}", "web3"),
            ("10.0.{n}.{n+9}/24", "10.0.3.12/24"),
            ("{n-1}{n}", "23"),
            ("{n", "{n"),
            ("{m}{}", "{m}{}"),
            ("ä{n}ä", "ä3ä"),
        ] {
            assert_eq!(expand(text, 3).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_sum_is_refused() {
        for text in ["{n+}", "{n*2}", "{n+-1}", "{n+4294967295}", "{n-2}", "{n+ä}", "{nä}", "{n 1}"]
        {
            assert!(expand(text, 1).is_err(), "{text}");
        }
    }
}
