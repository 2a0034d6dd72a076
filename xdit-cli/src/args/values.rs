//! Values of flags that are more than a string.

use std::str::FromStr;

/// Whole numbers. What is beyond `max` is left to whoever knows the model, who can say more than a range.
pub fn whole(min: usize, max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse::<i128>() {
        Ok(n) => usize::try_from(n).map_err(|_| format!("{n} is not within {min} to {max}")),
        Err(_) => Err(format!("expected a whole number within {min} to {max}")),
    }
}

/// Numbers, of which the library takes any.
pub fn number<T>(min: u16, max: u16) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + From<u16>,
{
    move |text| match text.parse::<T>() {
        Ok(x) if (T::from(min)..=T::from(max)).contains(&x) => Ok(x),
        _ => Err(format!("{text} is not a number within {min} to {max}")),
    }
}

/// `--seed`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// This one.
    Given(u64),
    /// One that is drawn.
    Random,
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("random" | "-1", _) => Ok(Self::Random),
            (_, Ok(seed)) => Ok(Self::Given(seed)),
            _ => Err(format!("expected a number within 0 to {}, or random (or -1) for one that is drawn", u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_told() {
        let height = whole(1, 100);
        assert_eq!(height("101"), Ok(101), "the model says more");
        assert_eq!(height("-5"), Err("-5 is not within 1 to 100".into()));
        assert_eq!(height("1e2"), Err("expected a whole number within 1 to 100".into()));
        assert_eq!(height(&"9".repeat(25)), Err(format!("{} is not within 1 to 100", "9".repeat(25))));
    }

    #[test]
    fn seeds() {
        assert_eq!("random".parse(), Ok(Seed::Random));
        assert_eq!("-1".parse(), Ok(Seed::Random));
        assert_eq!("18446744073709551615".parse(), Ok(Seed::Given(u64::MAX)));
        assert!("-2".parse::<Seed>().is_err_and(|error| error.contains("0 to 18446744073709551615")));
    }
}
