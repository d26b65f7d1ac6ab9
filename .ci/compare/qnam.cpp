/* SPDX-License-Identifier: 0BSD
 *
 * Qt 5: QNetworkAccessManager. One has 6 connections to a host and no more, so there are as many
 * managers as it takes to have JOBS in flight; each has a thread of its own inside Qt.
 */
#include <QFile>
#include <QGuiApplication>
#include <QNetworkAccessManager>
#include <QNetworkReply>
#include <QTimer>

#include "contract.h"

static struct contract c;
static int running;

static void start_next(QNetworkAccessManager *manager) {
    if (c.next == c.count)
        return;
    const char *url = c.url[c.next++];
    QNetworkReply *reply = manager->get(QNetworkRequest(QUrl(url)));
    running++;
    QObject::connect(reply, &QNetworkReply::finished, [=] {
        QFile file(contract_path(&c, url));
        if (reply->error() != QNetworkReply::NoError)
            qWarning("%s: %s", url, qPrintable(reply->errorString()));
        else if (!file.open(QFile::WriteOnly) || file.write(reply->readAll()) < 0)
            qWarning("%s: %s", url, qPrintable(file.errorString()));
        reply->deleteLater();
        start_next(manager);
        if (--running == 0)
            QCoreApplication::quit();
    });
    if (c.cancel_ms >= 0)
        QTimer::singleShot(int(c.cancel_ms), Qt::PreciseTimer, reply, &QNetworkReply::abort);
}

int main(int argc, char **argv) {
    QGuiApplication app(argc, argv);
    c = contract_read(argc, argv);
    tick();
    QTimer timer;
    timer.setTimerType(Qt::PreciseTimer);
    QObject::connect(&timer, &QTimer::timeout, tick);
    timer.start(1);
    QNetworkAccessManager *manager = nullptr;
    for (int i = 0; i < c.jobs; i++) {
        if (i % 6 == 0)
            manager = new QNetworkAccessManager(&app);
        start_next(manager);
    }
    app.exec();
    tick_report();
}
