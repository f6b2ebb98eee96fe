//! `#line` directives: what a compiler says of a rendered source names the line of the template.

use std::fmt::Write;

/// A template whose rendered lines say where they come from: at its start, behind what it includes, and wherever a block of the
/// template may leave lines out or repeat them.
pub(super) fn marked(path: &str, text: &str) -> String {
    let mut marked = String::new();
    mark(&mut marked, path, 1);
    let mut ends_whole = true;
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        marked += line;
        marked.push('\n');
        // A line that goes on in the next one cannot have a directive between the two.
        ends_whole = !line.ends_with('\\');
        if ends_whole && moves_lines(line) {
            mark(&mut marked, path, number + 1);
        }
    }
    if !ends_whole || !text.ends_with('\n') {
        marked.truncate(marked.len() - 1);
    }
    marked
}

fn mark(text: &mut String, path: &str, line: usize) {
    writeln!(text, "#line {line} \"{path}\"").expect("writing to a string");
}

/// Whether the lines rendered behind this one are not those that follow it.
fn moves_lines(line: &str) -> bool {
    let tags = || line.split("<%").skip(1).map(|tag| tag.trim_start_matches('-').trim_start());
    let count = |words: &[&str]| {
        tags()
            .filter(|tag| words.contains(&tag.split(|c: char| !c.is_alphanumeric()).next().unwrap_or("")))
            .count()
    };
    count(&["include"]) > 0
        || count(&["for", "if"]) != count(&["endfor", "endif"])
        || count(&["else", "elif"]) > count(&["if"])
}

#[cfg(test)]
mod tests {
    use super::marked;

    #[test]
    fn lines_are_named_where_others_come_between() {
        let text = "int a;\n<% include \"lib/warp.cuh\" %>\nint b = <% if x %>1<% else %>2<% endif %>;\n<% for i in n %>\nint c$( i )$;\n\
                    <% endfor %>\n<% if x %>\nint d;\n<% else %>\nint e;\n<% endif %>\n#define F(x) \\\n    <% if x %>x\nint g;\n";
        let expected = "#line 1 \"k/sm80.cu\"\nint a;\n<% include \"lib/warp.cuh\" %>\n#line 3 \"k/sm80.cu\"\n\
                        int b = <% if x %>1<% else %>2<% endif %>;\n<% for i in n %>\n#line 5 \"k/sm80.cu\"\nint c$( i )$;\n\
                        <% endfor %>\n#line 7 \"k/sm80.cu\"\n<% if x %>\n#line 8 \"k/sm80.cu\"\nint d;\n<% else %>\n\
                        #line 10 \"k/sm80.cu\"\nint e;\n<% endif %>\n#line 12 \"k/sm80.cu\"\n#define F(x) \\\n    <% if x %>x\n\
                        #line 14 \"k/sm80.cu\"\nint g;\n";
        assert_eq!(marked("k/sm80.cu", text), expected);
        assert_eq!(marked("k/sm80.cu", "int a;"), "#line 1 \"k/sm80.cu\"\nint a;");
        assert_eq!(marked("k/sm80.cu", ""), "#line 1 \"k/sm80.cu\"");
    }
}
