# Medians of the rounds after the first; ratios against the table without trigger.
BEGIN { FS = "\t" }
$3 > 1 {
    key = $1 SUBSEP $2
    n = ++count[key]
    time[key, n] = $4; ticks[key, n] = $5; wal[key, n] = $6
    if ($7 + 0 > logged[key] + 0) logged[key] = $7
}
function median(values, key,   n, i, j, t, sorted) {
    n = count[key]
    for (i = 1; i <= n; i++) sorted[i] = values[key, i] + 0
    for (i = 2; i <= n; i++) for (j = i; j > 1 && sorted[j] < sorted[j - 1]; j--) { t = sorted[j]; sorted[j] = sorted[j - 1]; sorted[j - 1] = t }
    low = sorted[1]; high = sorted[n]
    return n % 2 ? sorted[(n + 1) / 2] : (sorted[n / 2] + sorted[n / 2 + 1]) / 2
}
function row(id, value, unit, baseline, goal, met, extra) {
    printf "%s  \"%s\": {\"value\": %.3f, \"unit\": \"%s\", \"baseline\": \"%s\", \"goal\": %s, \"met\": %s%s}", separator, id, value, unit, baseline, goal, met ? "true" : "false", extra
    separator = ",\n"
}
function ratio(id, what, unit, scale, goal,   base, mine, lo, hi, cpu, extra) {
    base = median(time, what SUBSEP "bare")
    mine = median(time, what SUBSEP "native"); lo = low; hi = high
    extra = sprintf(", \"range\": [%.3f, %.3f]", lo / base, hi / base)
    if (median(ticks, what SUBSEP "bare") > 0) {
        cpu = median(ticks, what SUBSEP "native") / median(ticks, what SUBSEP "bare")
        extra = extra sprintf(", \"cpu\": %.3f", cpu)
    }
    if (count[what SUBSEP "plpgsql"]) extra = extra sprintf(", \"plpgsql\": %.3f", median(time, what SUBSEP "plpgsql") / base)
    row(id, mine / base, "x", sprintf("%.3f %s without trigger", base * scale, unit), goal, mine / base <= goal, extra)
}
END {
    print "{"
    ratio("capture.update", "bulk.update", "s", 1, 1.6)
    ratio("capture.insert", "bulk.insert", "s", 1, 1.4)
    ratio("capture.copy", "bulk.copy", "s", 1, 1.4)
    ratio("capture.noop", "bulk.noop", "s", 1, 1.2)
    row("capture.noop_rows", logged["bulk.noop" SUBSEP "native"], "rows", "0 rows", 0, logged["bulk.noop" SUBSEP "native"] == 0, "")
    ratio("capture.single_on", "single.on", "us", 1, 1.25)
    ratio("capture.single_off", "single.off", "us", 1, 1.25)
    base = median(wal, "bulk.update" SUBSEP "bare"); mine = median(wal, "bulk.update" SUBSEP "native")
    row("capture.wal", (mine - base) / rows, "B/row", sprintf("%.1f B/row without trigger", base / rows), 160, (mine - base) / rows <= 160, "")
    print "\n}"
}
